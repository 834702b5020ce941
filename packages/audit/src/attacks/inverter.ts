// A trained inverter: a small network from hidden states to tokens, trained on the states of other users' prompts. It
// looks for tokens whose embedding lies in the direction that a residual block finds in the state:
//   y = A x + W2 silu(W1 x + b1),  logits = s E y + log(frequency),
// x the state and E the embeddings of the domain's tokens, both standardised by column and scaled to length 1.
import {
  adamW,
  add,
  crossEntropy,
  type Float32Tensor,
  float32,
  gather,
  gradients,
  input,
  int64,
  linear,
  linearSchedule,
  mul,
  type NamedTensors,
  type Program,
  type Random,
  type Runtime,
  random,
  scale,
  silu,
  type Tensor,
  topIndices,
  total,
  type Value,
  zeros,
} from '@fellrec/graph';
import type { CutModel } from '@fellrec/models';
import { type AuditedModel, rowBlocks } from '../layerwise.ts';

export interface Inverter {
  /** The `count` likeliest tokens of each state, likeliest first, [rows, count]. */
  candidates(states: Float32Tensor, count: number): Promise<Int32Array>;
}

export interface InverterTrainer {
  /**
   * An inverter of the states at one depth. It goes on from the one that was trained before: states of neighbouring
   * depths are alike. That one must not be asked any more.
   */
  train(states: Float32Tensor, tokens: ArrayLike<number>, epochs: number): Promise<Inverter>;
  dispose(): Promise<void>;
}

/** Inner size of the block. */
const innerSize = 512;
/** About the largest logit of a state along an embedding. */
const sharpness = 16;
/** Tokens of the domain that training contrasts with besides its own. */
const contrasted = 1024;
const batchSize = 1024;
const learningRate = 2e-3;
const rowsAtOnce = 1024;

/**
 * @param counts how often each token of the domain stands in the training prompts; 0 for tokens of other public text,
 * which can be found all the same.
 */
export async function inverterTrainer(
  { cut, runtime }: AuditedModel,
  counts: ReadonlyMap<number, number>,
  seed: number,
): Promise<InverterTrainer> {
  const d = cut.hiddenSize;
  const draw = random(seed, 'inverter');
  const domain = [...counts.keys()];
  const trained = [
    ...domain.filter((token) => counts.get(token)! > 0),
    ...draw.shuffle(domain.filter((token) => counts.get(token) === 0)).slice(0, contrasted),
  ];
  const index = new Map(trained.map((token, i) => [token, i]));
  const all = await tokenTable(cut, runtime, domain, counts);
  const few = await tokenTable(cut, runtime, trained, counts);

  const shapes = { a: [d, d], w1: [innerSize, d], b1: [innerSize], w2: [d, innerSize] } as const;
  const variables = new Map(
    Object.entries(shapes).map(([name, shape]) => [name, input(name, 'float32', shape)] as const),
  );
  const logits = logitsOf(d, variables);
  const losses = crossEntropy(logits, input('labels', 'int64', ['rows']));
  const loss = total(mul(losses, input('weights', 'float32', ['rows'])));
  const slopes = gradients(loss, [...variables.values()]);
  const step = await runtime.compile(
    Object.fromEntries([...variables.keys()].map((name, i) => [`gradient.${name}`, slopes[i]!])),
  );
  const programs = new Map<number, Program>();
  const optimizer = adamW({ clipNorm: 1 });
  let parameters = start(d, draw);

  return {
    async train(states, tokens, epochs) {
      const moments = momentsOf(states);
      const inputs = unitRows(standardised(states, moments));
      const known = Array.from(tokens, (token, row) => ({ row, label: index.get(token)! }));
      const steps = epochs * Math.ceil(known.length / batchSize);
      let state = optimizer.init(parameters);
      for (let done = 0; done < steps; ) {
        const order = draw.shuffle(known);
        for (let from = 0; from < order.length; from += batchSize, done++) {
          const part = order.slice(from, from + batchSize);
          const rows = part.map(({ row }) => row);
          const labels = part.map(({ label }) => label);
          const outputs: Record<string, Tensor> = await step.run({
            ...few,
            x: chosenRows(inputs, rows),
            labels: int64(labels, [part.length]),
            weights: float32(new Float32Array(part.length).fill(1 / part.length), [part.length]),
            ...Object.fromEntries(state.parameters),
          });
          const found = [...variables.keys()].map(
            (name) => [name, outputs[`gradient.${name}`] as Float32Tensor] as const,
          );
          const rate = learningRate * linearSchedule(done, steps, Math.min(10, steps / 10));
          state = optimizer.update(new Map(found), state, rate).state;
        }
      }
      parameters = state.parameters;
      return {
        async candidates(asked, count) {
          const wanted = Math.min(count, domain.length);
          let program = programs.get(wanted);
          if (!program) {
            program = await runtime.compile({ top: topIndices(logits, wanted) });
            programs.set(wanted, program);
          }
          const found = new Int32Array(asked.dims[0]! * wanted);
          for (const { from, part } of rowBlocks(asked, rowsAtOnce)) {
            const x = unitRows(standardised(part, moments));
            const { top } = await program.run({ x, ...all, ...Object.fromEntries(parameters) });
            found.set(
              Int32Array.from(top!.data as BigInt64Array, (place) => domain[Number(place)]!),
              from * wanted,
            );
          }
          return found;
        },
      };
    },
    async dispose() {
      await step.dispose();
      for (const program of programs.values()) await program.dispose();
    },
  };
}

function logitsOf(d: number, variables: ReadonlyMap<string, Value>): Value {
  const x = input('x', 'float32', ['rows', d]);
  const of = (name: string) => variables.get(name)!;
  const y = add(linear(x, of('a')), linear(silu(linear(x, of('w1'), of('b1'))), of('w2')));
  const cosines = linear(y, input('table', 'float32', ['tokens', d]));
  return add(scale(cosines, sharpness), input('prior', 'float32', ['tokens']));
}

/** Begins as what finds the nearest embedding: A = I, W2 = 0. */
function start(d: number, { normal }: Random): NamedTensors {
  const identity = zeros([d, d]);
  for (let i = 0; i < d; i++) identity.data[i * d + i] = 1;
  const w1 = Float32Array.from({ length: innerSize * d }, () => normal());
  return new Map([
    ['a', identity],
    ['w1', float32(w1, [innerSize, d])],
    ['b1', zeros([innerSize])],
    ['w2', zeros([d, innerSize])],
  ]);
}

/** Feeds `table` [tokens, d] and `prior` [tokens]. */
async function tokenTable(
  cut: CutModel,
  runtime: Runtime,
  tokens: readonly number[],
  counts: ReadonlyMap<number, number>,
): Promise<{ readonly table: Float32Tensor; readonly prior: Float32Tensor }> {
  const rows = gather(cut.words(), input('ids', 'int64', ['tokens']));
  const program = await runtime.compile({ rows }, { prepack: false });
  const found = (await program.run({ ids: int64(tokens, [tokens.length]) })).rows as Float32Tensor;
  await program.dispose();
  return {
    table: unitRows(standardised(found, momentsOf(found))),
    prior: float32(
      tokens.map((token) => Math.log(counts.get(token)! + 0.1)),
      [tokens.length],
    ),
  };
}

interface Moments {
  readonly mean: Float64Array;
  readonly deviation: Float64Array;
}

/** Mean and standard deviation of each column. */
function momentsOf({ data, dims }: Float32Tensor): Moments {
  const [rows, d] = dims as [number, number];
  const mean = new Float64Array(d);
  const squares = new Float64Array(d);
  for (let r = 0; r < rows; r++) for (let c = 0; c < d; c++) mean[c]! += data[r * d + c]! / rows;
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < d; c++) squares[c]! += (data[r * d + c]! - mean[c]!) ** 2 / rows;
  return { mean, deviation: squares.map((square) => Math.sqrt(square) || 1) };
}

/** A copy with each column shifted by its mean and divided by its deviation. */
function standardised({ data, dims }: Float32Tensor, { mean, deviation }: Moments): Float32Tensor {
  const d = dims[1]!;
  return float32(
    data.map((value, i) => (value - mean[i % d]!) / deviation[i % d]!),
    dims,
  );
}

/** Scales rows to length 1, in place. */
function unitRows(tensor: Float32Tensor): Float32Tensor {
  const { data, dims } = tensor;
  const d = dims[1]!;
  for (let from = 0; from < data.length; from += d) {
    let square = 0;
    for (let c = 0; c < d; c++) square += data[from + c]! ** 2;
    const factor = 1 / Math.sqrt(square || 1);
    for (let c = 0; c < d; c++) data[from + c]! *= factor;
  }
  return tensor;
}

function chosenRows({ data, dims }: Float32Tensor, rows: readonly number[]): Float32Tensor {
  const d = dims[1]!;
  const chosen = zeros([rows.length, d]);
  for (const [i, row] of rows.entries()) chosen.data.set(data.subarray(row * d, (row + 1) * d), i * d);
  return chosen;
}
