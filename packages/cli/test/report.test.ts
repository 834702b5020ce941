// The report as a file: what it says, what it draws, and that it neither loads nor runs anything.
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type AttackResult, type AuditResult, attackNames, type Interval } from '@fellrec/audit';
import { expect, onTestFinished, test } from 'vitest';
import { auditSection } from '../src/report/audit.ts';
import { apart, attackTitles } from '../src/report/audit-charts.ts';
import { ruleStyles, seriesStyles } from '../src/report/chart.ts';
import { html } from '../src/report/html.ts';
import { backgrounds, page, writeReport } from '../src/report/page.ts';
import { contrast, rgbOf } from './contrast.ts';
import { charts, expectBalanced, rowsOf } from './markup.ts';

const around = (mean: number): Interval => ({ mean, low: mean - 0.05, high: mean + 0.05 });

const attacks: readonly AttackResult[] = [
  { attack: 'head', depth: 0, recovery: { tokenAccuracy: around(0.4), similarity: around(0.5) } },
  { attack: 'head', depth: 4, recovery: { tokenAccuracy: around(0.125), similarity: around(0.3) } },
  { attack: 'embedding-cosine', depth: 0, recovery: { tokenAccuracy: around(0.95), rougeL: around(0.9) } },
  { attack: 'embedding-cosine', depth: 4, recovery: { tokenAccuracy: around(0.2) } },
  { attack: 'catalogue', depth: 4, recovery: { items: around(0.6), target: around(0.3) } },
];

const result: AuditResult = {
  model: { path: 'models/tiny', hash: 'c0ffee', recommender: 'bigrec', layerCount: 4, hiddenSize: 64 },
  data: { name: 'games', items: 17_408, users: 50, historyTokens: 12_345 },
  seed: 7,
  inverter: {
    users: 400,
    tokens: 98_765,
    vocabulary: 512,
    epochs: 3,
    accuracy: [{ depth: 4, accuracy: 0.8125 }],
  },
  search: { budget: 4096, tolerance: 0.001, candidates: 1_234_567, ends: [] },
  floors: [
    { floor: 'most frequent', recovery: { tokenAccuracy: around(0.08) } },
    { floor: 'random', recovery: { items: around(0.05) } },
  ],
  attacks,
  gradients: [
    {
      attack: 'rows of the embedding',
      setting: 'full weights, batch of 1',
      uses: ['embedding', 'template'],
      metrics: { 'token recall': around(0.875) },
      note: 'order is not recovered',
    },
    { attack: 'membership', setting: 'LoRA, rank 8', uses: [], metrics: { AUC: around(0.625) } },
  ],
  defences: [
    {
      defence: 'none',
      depth: 2,
      attacks: [
        { attack: 'head', depth: 2, recovery: { tokenAccuracy: around(0.25) } },
        { attack: 'inverter', depth: 2, recovery: { tokenAccuracy: around(0.75) } },
      ],
      quality: { recallAt10: { mean: 0.0312, low: 0.025, high: 0.04 }, loss: 1.4567, users: 200 },
    },
    {
      defence: 'noise epsilon 8',
      depth: 2,
      attacks: [{ attack: 'inverter', depth: 2, recovery: { tokenAccuracy: around(0.5) } }],
      quality: { recallAt10: { mean: 0.0125, low: 0.01, high: 0.02 }, loss: 2.345, users: 200 },
      epsilon: 8,
    },
  ],
  costs: [
    { k: 1, parameters: 0.251, layers: 0.5, bytesPerToken: 1024 },
    { k: 2, parameters: 0.376, layers: 0.75, bytesPerToken: 1024 },
  ],
  recommendation: {
    threshold: 0.3,
    metric: 'tokenAccuracy',
    k: 2,
    cost: { k: 2, parameters: 0.376, layers: 0.75, bytesPerToken: 1024 },
    without: [
      { knowledge: 'text', k: 1 },
      { knowledge: 'catalogue', k: undefined },
    ],
    text: 'Keep 2 layers and the last.',
  },
  seconds: 61.4,
};

const { inverter: _, search: __, ...measured } = result;
const bare: AuditResult = { ...measured, floors: [], attacks: [], gradients: [], defences: [], costs: [] };

const markupOf = async (audit: AuditResult) => (await auditSection(audit)).body.markup;

test('an audit says what was audited and what follows', async () => {
  const { title, body } = await auditSection(result);
  expect(title).toBe('Audit of models/tiny');
  expect(body.markup).toContain('4 layers of 64, 50 users of games, seed 7');
  expect(body.markup).toContain('<strong>Keep 2 layers and the last.</strong>');
  expect(rowsOf(body.markup, 'Smallest k at which every attack recovers less than 0.3')).toEqual([
    ['attackers', 'k'],
    ['all', '2'],
    ['without public text of the domain: other users&#39; prompts', '1'],
    ['without the catalogue&#39;s titles', 'none'],
  ]);
  for (const part of ['c0ffee', '17,408 items', '12,345 history tokens', '98,765 tokens', '1,234,567 in all'])
    expect(body.markup).toContain(part);
});

test('tables hold every number', async () => {
  const markup = await markupOf(result);
  expect(rowsOf(markup, 'Attacks on hidden states')).toEqual([
    [
      'depth',
      'attack',
      'token accuracy',
      'ROUGE-L',
      'items of the history',
      'targets',
      'reconstruction similarity',
    ],
    ['0', 'head (BEI-style)', '0.400 [0.350, 0.450]', '–', '–', '–', '0.500 [0.450, 0.550]'],
    ['0', 'embedding, cosine (HEI-style)', '0.950 [0.900, 1.000]', '0.900 [0.850, 0.950]', '–', '–', '–'],
    ['4', 'head (BEI-style)', '0.125 [0.075, 0.175]', '–', '–', '–', '0.300 [0.250, 0.350]'],
    ['4', 'embedding, cosine (HEI-style)', '0.200 [0.150, 0.250]', '–', '–', '–', '–'],
    ['4', 'search in the catalogue', '–', '–', '0.600 [0.550, 0.650]', '0.300 [0.250, 0.350]', '–'],
  ]);
  expect(rowsOf(markup, 'Floors')).toEqual([
    ['floor', 'token accuracy', 'items of the history'],
    ['most frequent', '0.080 [0.030, 0.130]', '–'],
    ['random', '–', '0.050 [0.000, 0.100]'],
  ]);
  expect(rowsOf(markup, 'Attacks on gradients')).toEqual([
    ['attack', 'setting', 'knows', 'note', 'token recall', 'AUC'],
    [
      'rows of the embedding',
      'full weights, batch of 1',
      'the embedding table of the base model; the prompt template',
      'order is not recovered',
      '0.875 [0.825, 0.925]',
      '–',
    ],
    ['membership', 'LoRA, rank 8', 'nothing else', '', '–', '0.625 [0.575, 0.675]'],
  ]);
  expect(rowsOf(markup, 'Defences')).toEqual([
    ['defence', 'depth', 'epsilon', 'R@10', 'loss', 'users', 'head (BEI-style)', 'trained inverter'],
    [
      'none',
      '2',
      '–',
      '0.0312 [0.0250, 0.0400]',
      '1.457',
      '200',
      '0.250 [0.200, 0.300]',
      '0.750 [0.700, 0.800]',
    ],
    ['noise epsilon 8', '2', '8', '0.0125 [0.0100, 0.0200]', '2.345', '200', '–', '0.500 [0.450, 0.550]'],
  ]);
  expect(rowsOf(markup, 'What keeping the first k layers')).toEqual([
    ['k', 'parameters held', 'layers&#39; work', 'bytes per token'],
    ['1', '25.1 %', '50.0 %', '1,024'],
    ['2 (recommended)', '37.6 %', '75.0 %', '1,024'],
  ]);
  expect(rowsOf(markup, 'The trained inverter')).toEqual([
    ['depth', 'token accuracy'],
    ['4', '0.813'],
  ]);
});

test('charts name their series and put points where the numbers say', async () => {
  const drawn = charts(await markupOf(result));
  expect([...drawn.keys()]).toEqual([
    'Token accuracy over depth',
    'Items of the history over depth',
    'Targets over depth',
    'Reconstruction similarity over depth',
    'Defences: recovery against R@10',
  ]);
  for (const svg of drawn.values()) {
    expect(svg).toMatch(/^<svg viewBox="0 0 \d+ \d+" role="img"/);
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
    // An id would be in the page as often as there are charts.
    expect(svg).not.toContain(' id="');
    expectBalanced(svg);
  }

  const accuracy = drawn.get('Token accuracy over depth')!;
  for (const name of [
    attackTitles.head,
    attackTitles['embedding-cosine'],
    'floor: most frequent',
    'threshold 0.3',
  ])
    expect(accuracy).toContain(`>${name}</text>`);
  expect(accuracy).not.toContain(attackTitles.catalogue);
  // A plane of 600 x 280: depth 0 to 4 to the right, 1 to 0 downwards.
  const points = [...accuracy.matchAll(/translate\(([\d.]+),([\d.]+)\)" d="[^"]*" fill="(#\w+)"/g)].map(
    ([, x, y, color]) => ({ color, depth: Number(x) / 150, mean: Number((1 - Number(y) / 280).toFixed(6)) }),
  );
  const [head, embedding] = seriesStyles.map(({ color }) => color);
  expect(points.slice(0, 4)).toEqual([
    { color: head, depth: 0, mean: 0.4 },
    { color: head, depth: 4, mean: 0.125 },
    { color: embedding, depth: 0, mean: 0.95 },
    { color: embedding, depth: 4, mean: 0.2 },
  ]);
  expect(drawn.get('Items of the history over depth')).toContain(`>${attackTitles.catalogue}</text>`);
  expect(drawn.get('Items of the history over depth')).toContain('>floor: random</text>');

  const defences = drawn.get('Defences: recovery against R@10')!;
  for (const { defence } of result.defences) expect(defences).toContain(`>${defence}</text>`);
});

test('the threshold stands in the chart of its metric, which is drawn for it', async () => {
  const { recommendation } = result;
  const drawn = charts(
    await markupOf({ ...result, recommendation: { ...recommendation, metric: 'rougeL' } }),
  );
  expect(drawn.get('ROUGE-L over depth')).toContain('>threshold 0.3</text>');
  expect(drawn.get('Token accuracy over depth')).not.toContain('threshold');
});

test('defences at several depths have a legend and say their depth', async () => {
  const [first, second] = result.defences;
  const drawn = charts(await markupOf({ ...result, defences: [first!, { ...second!, depth: 3 }] }));
  const svg = drawn.get('Defences: recovery against R@10')!;
  for (const text of ['none, depth 2', 'noise epsilon 8, depth 3', 'depth 2', 'depth 3'])
    expect(svg).toContain(`>${text}</text>`);
});

test('a single defence is drawn, also where all users agree', async () => {
  const [first] = result.defences;
  const recallAt10 = { mean: 0, low: 0, high: 0 };
  const alone = { ...first!, quality: { ...first!.quality, recallAt10 } };
  const svg = charts(await markupOf({ ...result, defences: [alone] })).get('Defences: recovery against R@10');
  expect(svg).toContain('>none</text>');
  expect(svg).not.toMatch(/NaN|Infinity/);
});

test('an audit without results is a section with neither charts nor empty tables', async () => {
  const markup = await markupOf(bare);
  expect(markup).not.toContain('<svg');
  expect(markup.match(/<caption>/g)).toHaveLength(1);
  expect(markup).not.toContain('undefined');
});

test('what others named stays text', async () => {
  const evil = `"><script>alert('x')</script><img src=http://x onerror=y>&amp;{{}}`;
  const [defence] = result.defences;
  const audit: AuditResult = {
    ...result,
    model: { ...result.model, path: evil, hash: evil, adapter: evil },
    data: { ...result.data, name: evil },
    gradients: [{ attack: evil, setting: evil, uses: [], metrics: { [evil]: around(0.5) }, note: evil }],
    defences: [{ ...defence!, defence: evil }],
    recommendation: { ...result.recommendation, text: evil },
  };
  const text = page(evil, [await auditSection(audit)]);
  expect(text).not.toMatch(/<script|<img/);
  for (const svg of charts(text).values()) expectBalanced(svg);
  const escaped =
    '&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&lt;img src=http://x onerror=y&gt;&amp;amp;{{}}';
  expect(text).toContain(`<title>${escaped}</title>`);
  expect(text).toContain(`<strong>${escaped}</strong>`);
  // Title of the page twice, path twice, hash, adapter, data twice, gradients four times, defence, recommendation.
  expect(text.split(escaped)).toHaveLength(1 + 14);
});

test('templates escape text and keep markup', () => {
  const list = ['<', html`<br>`, 2, undefined];
  expect(html`<p title="${'"'}">${list}</p>`.markup).toBe('<p title="&quot;">&lt;<br>2</p>');
  // What was read from JSON is no markup, whatever its shape.
  expect(html`${{ markup: '<b>' } as unknown as string}`.markup).toBe('[object Object]');
});

test('a page loads nothing and runs nothing', async () => {
  const section = await auditSection(result);
  const text = page('Report', [section, { title: 'Training', body: html`<p>later</p>` }]);
  expect(text).not.toMatch(
    /<script|<link|<iframe|<object|<embed|<base|<img|<image|@import|url\(|\bsrc=|https?:/i,
  );
  expect(text).not.toMatch(/\son\w+=/);
  expect([...text.matchAll(/href="([^"]*)"/g)].map(([, target]) => target)).toEqual([
    '#section-1',
    '#section-2',
  ]);
  expect(text).toContain(`content="default-src 'none'; style-src 'unsafe-inline';`);
  expect(text).toContain('<h2>Audit of models/tiny</h2>');
  expect(text).toContain('<section id="section-2">\n<h2>Training</h2>\n<p>later</p>');
});

test('the same result is the same page', async () => {
  const first = page('Report', [await auditSection(result)]);
  expect(page('Report', [await auditSection(structuredClone(result))])).toBe(first);
});

test('series differ by colour, dash and shape, and read in light and dark', () => {
  const styles = [...seriesStyles, ...ruleStyles];
  expect(seriesStyles.length).toBeGreaterThanOrEqual(attackNames.length);
  expect(new Set(seriesStyles.map(({ color }) => color)).size).toBe(seriesStyles.length);
  expect(new Set(seriesStyles.map(({ shape }) => shape)).size).toBe(seriesStyles.length);
  expect(new Set(styles.map(({ dash }) => dash.join())).size).toBe(styles.length);
  for (const { color } of seriesStyles)
    for (const background of Object.values(backgrounds))
      expect(contrast(rgbOf(color), rgbOf(background)), `${color} on ${background}`).toBeGreaterThan(3);
});

test('labels keep their order and their distance', () => {
  expect(apart([0.5, 0.1, 0.5, 0.52], 0.1).map((x) => Number(x.toFixed(2)))).toEqual([0.6, 0.1, 0.5, 0.7]);
  expect(apart([], 0.1)).toEqual([]);
});

test('a report is written whole or not at all', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-report-'));
  onTestFinished(() => rm(folder, { recursive: true }));
  const file = join(folder, 'report.html');
  await writeFile(file, 'before');
  const section = { title: 'Part', body: html`<p>text</p>` };
  await writeReport(file, 'Report', [section]);
  expect(await readFile(file, 'utf8')).toBe(page('Report', [section]));
  expect(await readdir(folder)).toEqual(['report.html']);

  // A name that a folder has: the renaming fails after the writing.
  const taken = join(folder, 'taken');
  await mkdir(join(taken, 'inside'), { recursive: true });
  await expect(writeReport(taken, 'Report', [section])).rejects.toThrow(`report: cannot write ${taken}: `);
  expect(await readdir(folder)).toEqual(['report.html', 'taken']);
  await expect(writeReport(join(folder, 'no', 'report.html'), 'Report', [])).rejects.toThrow('ENOENT');
});
