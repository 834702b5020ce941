// What the round relies on in every client, wherever it trains. Implementations run it on clients of their own.
import type { NamedTensors } from '@fellrec/graph';
import { describe, expect, it } from 'vitest';
import type { Client, TrainingProgress } from '../src/index.ts';

/** Runs the suite on clients that `make` returns, each with training samples, and parameters that it can start from. */
export function describeClient(
  name: string,
  make: () => Promise<{ readonly client: Client; readonly initial: NamedTensors }>,
): void {
  describe(`client: ${name}`, () => {
    it('returns the tensors that it was given, trained, and leaves the given ones as they are', async () => {
      const { client, initial } = await make();
      const before = structuredClone(initial);
      const update = await client.train(initial, { round: 0 });
      expect(initial).toEqual(before);
      expect(shapesOf(update.parameters)).toEqual(shapesOf(initial));
      expect(update.parameters).not.toEqual(initial);
      expect(Number.isFinite(update.loss)).toBe(true);
      expect(update.samples).toBe(client.samples);
    });

    it('returns plain data', async () => {
      const { client, initial } = await make();
      const update = await client.train(initial, { round: 0 });
      expect(structuredClone(update)).toEqual(update);
      const evaluation = await client.evaluate(initial, { round: 0 });
      expect(JSON.parse(JSON.stringify(evaluation))).toEqual(evaluation);
    });

    it('trains to the same bits again from the same start, whatever it did in between', async () => {
      const { client, initial } = await make();
      const first = await client.train(initial, { round: 3 });
      await client.train(first.parameters, { round: 4 });
      await client.evaluate(first.parameters, { round: 4 });
      expect(await client.train(initial, { round: 3 })).toEqual(first);
      const { client: other } = await make();
      expect(await other.train(initial, { round: 3 })).toEqual(first);
    });

    it('evaluates what it is given, not what it trained last', async () => {
      const { client, initial } = await make();
      const before = structuredClone(initial);
      const first = await client.evaluate(initial, { round: 0 });
      await client.train(initial, { round: 0 });
      expect(await client.evaluate(initial, { round: 1 })).toEqual(first);
      expect(initial).toEqual(before);
      expect(first.samples).toBeGreaterThanOrEqual(0);
    });

    it('reports the steps it has done, each once, up to the last', async () => {
      const { client, initial } = await make();
      const reports: TrainingProgress[] = [];
      await client.train(initial, { round: 0, onProgress: (progress) => reports.push(progress) });
      const steps = reports.at(-1)!.steps;
      expect(reports.at(-1)!.step).toBe(steps);
      for (const [i, report] of reports.entries()) {
        expect(report.steps).toBe(steps);
        expect(report.step).toBeGreaterThan(reports[i - 1]?.step ?? 0);
      }
    });
  });
}

function shapesOf(tensors: NamedTensors): [string, readonly number[]][] {
  return [...tensors].map(([name, { dims }]): [string, readonly number[]] => [name, dims]).sort();
}
