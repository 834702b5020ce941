// SmolLM2-135M from its GGUF file against transformers and peft on the same dequantised weights; skipped where the
// checkpoint is absent.
import { join } from 'node:path';
import { float32, type NamedTensors, nodeRuntime } from '@fellrec/graph';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Sequence } from '../src/batch.ts';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { type Adapter, languageModel, type WholeLanguageModel } from '../src/language-model.ts';
import { adaptedProjections, loraName } from '../src/lora.ts';
import { loadTokenizer } from '../src/tokenizer.ts';
import { largestDifference, norm, relativeDifference } from './numbers.ts';
import { readJson, sharedModel, temporaryFolder } from './shared.ts';

interface Cases {
  tokenizer: { text: string; ids: number[]; decoded: string }[];
  samples: { prompt: string; answer: string; ids: number[]; prompt_length: number }[];
  loss_prompt_and_answer: number;
  loss_answer_only: number;
  top10_at_second_last_position: { ids: number[]; logits: number[] }[];
  final_hidden_last_token_first8: number[][];
  layer_norms_last_token: number[][];
  greedy: number[][];
  greedy_text: string[];
  beam4: { sequences: number[][]; scores: number[] };
  lora: {
    r: number;
    alpha: number;
    loss_prompt_and_answer: number;
    grads: Record<string, { norm: number; first4: number[] }>;
  };
}

const folder = sharedModel('smollm2-135m-instruct');
const eos = 2;

describe.skipIf(!folder)('SmolLM2-135M', () => {
  const cases: Cases = folder ? readJson(join(folder, 'cases.json')) : (undefined as never);
  const cacheDir = temporaryFolder();
  let model: WholeLanguageModel;
  beforeAll(async () => {
    model = languageModel(await openCheckpoint(folder!, { cacheDir }), nodeRuntime());
  });
  // Each program holds its own copy of half a gigabyte of weights.
  afterEach(() => model.release());
  afterAll(() => model.release());

  /** Padded on the left with the end token, labels from place `from` of each sample; padding is computed too. */
  function leftPadded(from: (sample: Cases['samples'][number]) => number): Sequence[] {
    const longest = Math.max(...cases.samples.map(({ ids }) => ids.length));
    return cases.samples.map((sample) => {
      const padding = longest - sample.ids.length;
      const fill = (x: number) => new Array<number>(padding).fill(x);
      return {
        ids: [...fill(eos), ...sample.ids],
        attention: [...fill(0), ...sample.ids.map(() => 1)],
        labels: [...fill(-100), ...sample.ids.map((id, t) => (t < from(sample) ? -100 : id))],
      };
    });
  }

  test('token ids and decoded text', async () => {
    const tokenizer = await loadTokenizer(folder!);
    expect(cases.tokenizer.length).toBeGreaterThan(100);
    for (const { text, ids, decoded } of cases.tokenizer) {
      expect(tokenizer.encode(text)).toEqual(ids);
      expect(tokenizer.decode(ids)).toBe(decoded.replace(/<\|\w+\|>/g, '')); // without special tokens
    }
    for (const { prompt, answer, ids, prompt_length } of cases.samples) {
      expect(tokenizer.encode(prompt)).toEqual(ids.slice(0, prompt_length));
      expect([...tokenizer.encodeContinuation(answer), eos]).toEqual(ids.slice(prompt_length));
    }
  });

  test('losses of answers, and of prompts and answers', async () => {
    const answers = await model.loss(
      leftPadded(({ prompt_length }) => prompt_length),
      undefined,
      1,
    );
    expect(Math.abs(answers - cases.loss_answer_only)).toBeLessThan(1e-4);
    const all = await model.loss(
      leftPadded(() => 0),
      undefined,
      1,
    );
    expect(Math.abs(all - cases.loss_prompt_and_answer)).toBeLessThan(1e-4);
  });

  test('hidden states and logits', async () => {
    for (const [i, { ids }] of cases.samples.entries()) {
      const found = await model.trace([{ ids }]);
      const row = (name: string, t: number) => {
        const { data, dims } = found[name]!;
        return (data as Float32Array).subarray(t * dims[1]!, (t + 1) * dims[1]!);
      };
      const last = ids.length - 1;
      const norms = Array.from({ length: 31 }, (_, layer) => norm(row(`hidden.${layer}`, last)));
      expect(relativeDifference(norms, cases.layer_norms_last_token[i]!)).toBeLessThan(1e-4);
      const hidden = row('hidden.30', last).subarray(0, 8);
      expect(largestDifference(hidden, cases.final_hidden_last_token_first8[i]!)).toBeLessThan(1e-3);
      const logits = row('logits', last - 1);
      const { ids: best, logits: expected } = cases.top10_at_second_last_position[i]!;
      const order = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]!);
      expect(order.slice(0, 10)).toEqual(best);
      expect(
        largestDifference(
          best.map((id) => logits[id]!),
          expected,
        ),
      ).toBeLessThan(1e-3);
    }
  });

  test('greedy and beam search', async () => {
    const prompts = cases.samples.map(({ ids, prompt_length }) => ids.slice(0, prompt_length));
    const options = { maxNewTokens: 24, eosIds: [eos] };
    const padded = (ids: readonly number[]) => [...ids, ...new Array<number>(24 - ids.length).fill(eos)];
    const greedy = await model.generate(prompts, { ...options, beams: 1 });
    expect(greedy.map(([best]) => padded(best!.ids))).toEqual(cases.greedy);
    const tokenizer = await loadTokenizer(folder!);
    expect(greedy.map(([best]) => tokenizer.decode(best!.ids))).toEqual(cases.greedy_text);

    const beams = (await model.generate(prompts, { ...options, beams: 4 })).flat();
    expect(beams.map(({ ids }) => padded(ids))).toEqual(cases.beam4.sequences);
    const scores = beams.map(({ score }) => score);
    expect(largestDifference(scores, cases.beam4.scores)).toBeLessThan(1e-4);
  });

  test('loss and gradients of an adapter', async () => {
    const { r, alpha, loss_prompt_and_answer, grads } = cases.lora;
    const config = { rank: r, alpha, dropout: 0, targetModules: ['q_proj', 'v_proj'] as const };
    const tensors: NamedTensors = new Map(
      [...adaptedProjections(model.checkpoint.config, config)].flatMap(([path, [out, in_]]) => [
        [loraName(path, 'A'), filled(r, in_, (i, j) => 0.02 * Math.sin(1 + 7 * i + 3 * j))] as const,
        [loraName(path, 'B'), filled(out, r, (i, j) => 0.02 * Math.cos(2 + 5 * i + j))] as const,
      ]),
    );
    const adapter: Adapter = { config, tensors };
    const batch = leftPadded(() => 0);
    const { loss, gradients } = await model.gradients(batch, adapter, { microBatch: 1 });
    expect(Math.abs(loss - loss_prompt_and_answer)).toBeLessThan(1e-4);
    expect([...gradients.keys()].sort()).toEqual(Object.keys(grads).sort());
    for (const [name, { norm: expected, first4 }] of Object.entries(grads)) {
      const { data } = gradients.get(name)!;
      expect(Math.abs(norm(data) / expected - 1), name).toBeLessThan(1e-3);
      const typical = expected / Math.sqrt(data.length);
      expect(largestDifference(data.subarray(0, 4), first4) / typical, name).toBeLessThan(1e-2);
    }
  });
});

function filled(rows: number, columns: number, element: (i: number, j: number) => number) {
  const data = Float32Array.from({ length: rows * columns }, (_, at) =>
    element(Math.floor(at / columns), at % columns),
  );
  return float32(data, [rows, columns]);
}
