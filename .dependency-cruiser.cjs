// Imports point down this table only (a package may import those listed for it), and never in a circle.
const mayImport = {
  graph: [],
  models: ['graph'],
  recsys: ['graph', 'models'],
  federation: ['graph'],
  cli: ['graph', 'models', 'recsys', 'federation'],
};
const all = Object.keys(mayImport);

module.exports = {
  forbidden: [
    { name: 'no-cycles', severity: 'error', from: {}, to: { circular: true } },
    ...all.map((name) => ({
      name: `${name}-imports-down-only`,
      severity: 'error',
      from: { path: `^packages/${name}/` },
      to: { path: `^packages/(${all.filter((other) => other !== name && !mayImport[name].includes(other)).join('|') || '-'})/` },
    })),
    {
      name: 'only-the-runtime-names-onnxruntime',
      severity: 'error',
      from: { pathNot: '^packages/graph/src/runtime/' },
      to: { path: 'onnxruntime-' },
    },
    {
      name: 'one-way-in',
      comment: 'other packages are imported through their index.ts',
      severity: 'error',
      from: { path: '^packages/([^/]+)/' },
      to: { path: '^packages/([^/]+)/src/', pathNot: ['^packages/$1/', '^packages/[^/]+/src/index\\.ts$'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '/dist/' },
    tsConfig: { fileName: 'tsconfig.base.json' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: { conditionNames: ['source', 'import', 'node', 'default'], exportsFields: ['exports'] },
  },
};
