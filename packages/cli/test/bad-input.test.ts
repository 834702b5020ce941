// Input that cannot work: one clear message on standard error, the documented exit code, nothing half-written.
import { existsSync } from 'node:fs';
import { readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  fellrec,
  filesOf,
  interactions,
  items,
  modelCopy,
  readJson,
  scratch,
  type Workspace,
  workspace,
} from './shared.ts';

let place: Workspace;

beforeAll(async () => {
  place = await workspace();
});
afterAll(() => place?.remove());

/** Runs a command line that has to fail with that message, and nothing on standard output. */
async function fails(code: number, argv: readonly string[], ...messages: (string | RegExp)[]): Promise<void> {
  const outcome = await fellrec(...argv);
  expect(outcome.stderr).toMatch(/^fellrec: |\nfellrec: /);
  for (const message of messages)
    if (typeof message === 'string') expect(outcome.stderr).toContain(message);
    else expect(outcome.stderr).toMatch(message);
  // A message for users, not a trace for us.
  expect(outcome.stderr).not.toMatch(/\n\s+at /);
  expect({ code: outcome.code, stdout: outcome.stdout }).toEqual({ code, stdout: '' });
}

const failsToTrain = async (
  settings: Parameters<Workspace['config']>[0],
  ...messages: (string | RegExp)[]
) => {
  await fails(1, ['train', '-c', await place.config({ name: 'bad', ...settings })], ...messages);
  expect(existsSync(place.run('bad'))).toBe(false);
};

describe('configuration', () => {
  test('a key that is unknown, at any depth, is named beside those that there are', async () => {
    const config = await place.config({ federation: { round: 3 }, trainning: {} });
    await fails(
      2,
      ['train', '-c', config],
      config,
      'Unrecognized key: "trainning"; there are name, seed, runs, ',
      'Unrecognized key: "round"; there are strategy, rounds, ',
      'at federation',
    );
  });

  test('options of train that contradict each other', async () => {
    const config = await place.config();
    await fails(2, ['train', '-c', config, '--resume', '--force'], 'pass one of them');
    await fails(
      2,
      ['train', '-c', config, '--quorum', '2', '--tokens', 'tokens.json'],
      '--tokens, --quorum: for remote clients; pass --clients remote',
    );
  });

  test('what a recommender does not have is named, all of it at once', async () => {
    const config = await place.config({
      lora: { targetModules: ['q_proj', 'query'] },
      recformer: { tune: 'full' },
    });
    await fails(
      2,
      ['train', '-c', config],
      "lora.targetModules: query are none of bigrec's; it has q_proj, k_proj",
      'recformer.tune: full fine-tuning is there for recommender: recformer only',
    );
    const encoder = await place.config({
      recommender: 'recformer',
      model: { base: 'int8' },
      lora: { targetModules: ['v_proj'] },
    });
    await fails(
      2,
      ['train', '-c', encoder],
      "v_proj are none of recformer's",
      'model.base: int8 is there for recommender: bigrec only',
    );
  });

  test('a value of the wrong type is named, all of them at once', async () => {
    const config = await place.config({
      federation: { rounds: 'three' },
      lora: { rank: 0, targetModules: ['q'] },
    });
    await fails(
      2,
      ['train', '-c', config],
      /expected number, received string\s+→ at federation\.rounds/,
      'at lora.rank',
      'at lora.targetModules[0]',
    );
  });

  test('a setting that is missing is named', async () => {
    const file = join(await scratch(), 'empty.yaml');
    await writeFile(file, 'seed: 3\n');
    await fails(2, ['train', '-c', file], 'at name', 'data.path', 'at model');
  });

  test('a file that is missing or no YAML', async () => {
    const folder = await scratch();
    await fails(
      2,
      ['train', '-c', join(folder, 'no.yaml')],
      `config: cannot read ${folder}/no.yaml: no such file`,
    );
    await writeFile(join(folder, 'bad.yaml'), 'name: [1, 2\n');
    await fails(2, ['train', '-c', join(folder, 'bad.yaml')], 'bad.yaml is neither YAML nor JSON');
    await writeFile(join(folder, 'text.yaml'), 'rounds\n');
    await fails(2, ['train', '-c', join(folder, 'text.yaml')], 'text.yaml holds no settings');
  });

  test.each([
    ['federation.rounds', '--set federation.rounds: write key=value'],
    ['federation.runds=3', 'Unrecognized key: "runds"'],
    ['federation.rounds=many', 'at federation.rounds'],
    ['federation.rounds=[1', 'rounds=[1'],
    ['__proto__.x=1', 'no key "__proto__"'],
  ])('--set %s', async (setting, message) => {
    await fails(2, ['train', '-c', await place.config(), '--set', setting], message);
  });
});

describe('model', () => {
  test('a folder that is missing', async () => {
    await failsToTrain({ model: { path: '/nowhere/llama' } }, 'model: /nowhere/llama does not exist');
  });

  test('weights that are truncated name the tensor', async () => {
    const path = await modelCopy();
    await truncate(join(path, 'model.safetensors'), 1_000_000);
    await failsToTrain(
      { model: { path } },
      /model\.safetensors is truncated: "[\w.]+" ends at byte \d+, the file has 1000000/,
    );
  });

  test('config.json and weights that disagree: every mismatch', async () => {
    const path = await modelCopy();
    const config = await readJson(path, 'config.json');
    const changed = {
      ...config,
      intermediate_size: config.intermediate_size + 4,
      vocab_size: config.vocab_size + 1,
    };
    await writeFile(join(path, 'config.json'), JSON.stringify(changed));
    const mismatches = Array.from({ length: config.num_hidden_layers }, (_, layer) =>
      ['gate', 'up', 'down'].map((name) => `model.layers.${layer}.mlp.${name}_proj.weight`),
    ).flat();
    await failsToTrain(
      { model: { path } },
      'is this the right config.json?',
      'model.embed_tokens.weight',
      ...mismatches,
    );
  });

  test('an architecture that is not supported', async () => {
    const path = await modelCopy();
    const config = await readJson(path, 'config.json');
    await writeFile(join(path, 'config.json'), JSON.stringify({ ...config, model_type: 'gpt2' }));
    await failsToTrain({ model: { path } }, 'unsupported architecture "gpt2"; supported: llama');
  });

  test('a tokenizer that is missing', async () => {
    const path = await modelCopy();
    await rm(join(path, 'tokenizer.json'));
    await failsToTrain(
      { model: { path } },
      `tokenizer: cannot read ${path}/tokenizer.json; put the model's tokenizer.json`,
    );
  });

  test('a context that holds no prompt', async () => {
    const config = await place.config({ name: 'narrow', model: { maxTokens: 64 } });
    await fails(
      1,
      ['train', '-c', config],
      /without any history .* exceed 64 tokens; raise model\.maxTokens/,
    );
    expect(existsSync(place.run('narrow'))).toBe(false);
  });

  test('info and bench of a model that is missing', async () => {
    await fails(1, ['model', 'info', '/nowhere/llama'], 'model: /nowhere/llama does not exist');
    await fails(1, ['bench', 'step', '--model', '/nowhere/llama'], 'model: /nowhere/llama does not exist');
  });
});

describe('data', () => {
  test('a folder that is missing', async () => {
    await failsToTrain({ data: { path: '/nowhere/data' } }, '/nowhere/data');
    await fails(1, ['data', 'stats', '/nowhere/data'], '/nowhere/data');
  });

  test('histories that leave nothing to judge or test by, before anything is trained', async () => {
    const folder = await scratch();
    const short = join(folder, 'i.csv');
    await writeFile(
      short,
      ['user,item', ...Array.from({ length: 8 }, (_, u) => `u${u},0\nu${u},4`)].join('\n'),
    );
    const data = join(folder, 'short');
    const imported = await fellrec(
      'data',
      'import',
      '--interactions',
      short,
      '--items',
      items,
      '--k-core',
      '0',
      '-o',
      data,
    );
    expect(imported.code, imported.stderr).toBe(0);
    await failsToTrain(
      { data: { path: data } },
      'train: no client has validation samples beside training samples',
    );
  });

  test('a partition by a column that users do not have', async () => {
    await failsToTrain({ partition: { method: 'column', column: 'region' } }, 'have no "region"');
  });

  const importing = async (changes: Record<string, string>) => {
    const output = join(await scratch(), 'out');
    const options = { interactions, items, 'sequence-column': 'items', output, ...changes };
    const argv = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]);
    return { argv: ['data', 'import', ...argv], output };
  };

  test.each([
    [{ 'user-column': 'reader' }, [/reader/, /user.*items/]],
    [{ 'title-column': 'name' }, [/name/, /item.*title/]],
    [
      { split: 'global-time' },
      ['sequences.tsv holds sequences, which have no times; split them by leave-one-out'],
    ],
    [{ interactions: '/nowhere/sequences.tsv' }, ['/nowhere/sequences.tsv']],
    [{ 'k-core': '400' }, ['no interaction is left after 400-core filtering; lower --k-core']],
  ] as const)('import with %j', async (changes, messages) => {
    const { argv, output } = await importing(changes);
    await fails(1, argv, ...messages);
    expect(existsSync(output)).toBe(false);
  });

  test('import of items that have no title', async () => {
    const file = join(await scratch(), 'items.tsv');
    const lines = (await readFile(items, 'utf8')).split('\n');
    await writeFile(file, [...lines.slice(0, 1), ...lines.slice(3)].join('\n'));
    const { argv, output } = await importing({ items: file });
    await fails(1, argv, '2 items of the interactions have no title, such as "0", "4"');
    expect(existsSync(output)).toBe(false);
  });

  test('import over a folder that is there', async () => {
    const output = join(place.folder, 'data');
    const before = await filesOf(output);
    const { argv } = await importing({ output });
    await fails(1, argv, `data: ${output} exists; choose another folder or pass --force`);
    expect(await filesOf(output)).toEqual(before);
    const foreign = await importing({ output: place.folder });
    await fails(1, [...foreign.argv, '--force'], `${place.folder} is no data folder and is not replaced`);
    expect(await filesOf(output)).toEqual(before);
  });
});
