// --json: the result and nothing else on standard output. train, evaluate and recommend are in train.test.ts.
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { embeddedModel, fellrec, interactions, items, root, scratch } from './shared.ts';

/** Runs a command line with --json, which has to succeed in silence, and parses what it prints. */
async function json(...argv: string[]) {
  const { code, stdout, stderr } = await fellrec(...argv, '--json');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
}

test('data import and data stats', async () => {
  const output = join(await scratch(), 'data');
  const files = ['--interactions', interactions, '--items', items, '--sequence-column', 'items'];
  const imported = await json('data', 'import', ...files, '-o', output);
  expect(imported).toMatchObject({ users: 296, interactions: 2465, validation: 296, test: 296 });
  expect(await json('data', 'stats', output)).toEqual(imported);
});

test('model info', async () => {
  const info = await json('model', 'info', embeddedModel, '--cache', await scratch());
  // 260,000 parameters, as the model's name says.
  expect(Math.round(info.parameters / 1e4)).toBe(26);
  expect(info).toMatchObject({ directory: embeddedModel, config: { vocabularySize: 512 }, unused: [] });
});

test('model verify', async () => {
  const fixture = join(root, 'packages/models/test/fixtures/llama-gqa-tied');
  const groups = await json('model', 'verify', fixture, '--cache', await scratch());
  expect(groups.length).toBeGreaterThan(0);
  for (const { group, difference, tolerance, pass } of groups) {
    expect(difference, group).toBeLessThanOrEqual(tolerance);
    expect(pass, group).toBe(true);
  }
});

test('bench step', async () => {
  const size = ['--batch', '2', '--micro-batch', '1', '--length', '16', '--labels', '4', '--steps', '2'];
  const found = await json('bench', 'step', '--model', embeddedModel, '--threads', '1', ...size);
  expect(found).toMatchObject({ batch: 2, microBatch: 1, length: 16, labels: 4 });
  expect(found.secondsPerStep).toHaveLength(2);
  expect(found.tokensPerSecond.best).toBeGreaterThanOrEqual(found.tokensPerSecond.median);
});

test('config-schema', async () => {
  expect(await json('config-schema')).toMatchObject({ description: 'FELLRec run', type: 'object' });
});
