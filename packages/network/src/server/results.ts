// What comes out of tasks, read from messages. Everything here throws INVALID_ARGUMENT.
import type { Evaluation, TrainingProgress, Update } from '@fellrec/federation';
import type { ReportProgressRequest, ReportResultRequest, UploadHead } from '#proto/federation_pb';
import { invalid } from '../protocol/invalid.ts';
import type { TestResult } from '../protocol/test-result.ts';
import type { JoinFacts } from './sessions.ts';

const maxMetrics = 100;
const metricName = /^[a-z][a-z0-9@._-]{0,63}$/;

/** An update without its tensors. */
export function trainingOf(head: UploadHead, { trainSamples }: JoinFacts): Omit<Update, 'parameters'> {
  const { samples, realTokens, computedTokens, paddingTokens } = head;
  const loss = finite('loss', head.loss);
  assertCount('samples', samples, trainSamples);
  const [real, computed, padding] = [realTokens, computedTokens, paddingTokens].map(safe) as [
    number,
    number,
    number,
  ];
  if (padding > computed)
    throw invalid(`padding_tokens is ${padding}, more than all ${computed} computed_tokens`);
  const areCounted = real > 0 || computed > 0;
  return { loss, samples, ...(areCounted && { tokens: { real, computed, padding } }) };
}

export function progressOf({ step, steps, loss }: ReportProgressRequest): TrainingProgress {
  if (step < 1 || step > steps)
    throw invalid(`step is ${step} of ${steps}; steps count from 1 to the last one`);
  return { step, steps, loss: finite('loss', loss) };
}

export function evaluationOf(request: ReportResultRequest, { validationSamples }: JoinFacts): Evaluation {
  const { samples, loss } = request;
  assertCount('samples', samples, validationSamples);
  return { samples, loss: finite('loss', loss) };
}

export function testResultOf(request: ReportResultRequest, { testUsers }: JoinFacts): TestResult {
  const { samples, truncated, metrics } = request;
  assertCount('samples', samples, testUsers);
  if (truncated > samples) throw invalid(`truncated is ${truncated}, more than all ${samples} users`);
  const entries = Object.entries(metrics);
  if (entries.length > maxMetrics) throw invalid(`${entries.length} metrics; send at most ${maxMetrics}`);
  for (const [name, value] of entries) {
    if (!metricName.test(name))
      throw invalid(`metrics: ${JSON.stringify(name.slice(0, 100))} is no name such as "recall@10"`);
    finite(`metrics: ${name}`, value);
    if (value < 0 || value > 1) throw invalid(`metrics: ${name} is ${value}; a metric is from 0 to 1`);
  }
  return { metrics: Object.fromEntries(entries), users: samples, truncated };
}

function finite(field: string, value: number): number {
  if (!Number.isFinite(value)) throw invalid(`${field} is ${value}; it must be finite`);
  return value;
}

function assertCount(field: string, found: number, joined: number): void {
  if (found !== joined) throw invalid(`${field} is ${found}, but the client joined with ${joined}`);
}

function safe(count: bigint): number {
  if (count > BigInt(Number.MAX_SAFE_INTEGER)) throw invalid(`${count} tokens are too many to be true`);
  return Number(count);
}
