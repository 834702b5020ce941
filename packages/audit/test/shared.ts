// The embedded model and sample, opened for attacks.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nodeRuntime } from '@fellrec/graph';
import {
  llama,
  llamaCut,
  loadTokenizer,
  openCheckpoint,
  openRecformer,
  type RecformerCheckpoint,
  recformerCut,
  type Tokenizer,
} from '@fellrec/models';
import {
  type Dataset,
  importDataset,
  popularity,
  readDataset,
  subset,
  testSamples,
  videoGames,
} from '@fellrec/recsys';
import { afterAll } from 'vitest';
import { type AuditedModel, auditedModel } from '../src/layerwise.ts';
import type { StudyOptions } from '../src/options.ts';
import { attackNames } from '../src/result.ts';
import { promptSequences, type SequenceMaker } from '../src/sequences.ts';

const quickstart = join(import.meta.dirname, '../../cli/quickstart');
const fixtures = join(import.meta.dirname, '../../models/test/fixtures');
export const runtime = nodeRuntime({ threads: 1, spinning: false });

/** An empty folder, removed when the file's tests are done. */
function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'fellrec-audit-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export async function openSample(): Promise<Dataset> {
  const output = join(temporaryFolder(), 'data');
  await importDataset({
    interactions: join(quickstart, 'games-sample/sequences.tsv'),
    items: join(quickstart, 'games-sample/items.tsv'),
    columns: { sequence: 'items' },
    output,
  });
  return readDataset(output);
}

export async function openStories(): Promise<{
  checkpoint: Awaited<ReturnType<typeof openCheckpoint>>;
  model: AuditedModel;
  tokenizer: Tokenizer;
}> {
  const checkpoint = await openCheckpoint(join(quickstart, 'stories260k'), { cacheDir: temporaryFolder() });
  return {
    checkpoint,
    model: auditedModel(llamaCut(llama(checkpoint), checkpoint.config), runtime),
    tokenizer: await loadTokenizer(checkpoint.directory),
  };
}

export async function openTinyEncoder(): Promise<{ checkpoint: RecformerCheckpoint; model: AuditedModel }> {
  const checkpoint = await openRecformer(join(fixtures, 'recformer-tiny'), { cacheDir: temporaryFolder() });
  return { checkpoint, model: auditedModel(recformerCut(checkpoint), runtime) };
}

/** Prompts of the sample for the embedded model. */
export function storyPrompts(catalogue: Dataset['catalogue'], tokenizer: Tokenizer): SequenceMaker {
  return promptSequences({ catalogue, tokenizer, domain: videoGames, maxTokens: 320, eosIds: [2] });
}

export interface Users {
  readonly victims: number;
  readonly auxiliary: number;
  readonly held: number;
}

/** A study of few users with all attacks. */
export function studyOf(
  {
    model,
    tokenizer,
    dataset,
    sequences,
  }: {
    model: AuditedModel;
    tokenizer: Tokenizer;
    dataset: Dataset;
    sequences: SequenceMaker;
  },
  { victims, auxiliary, held }: Users,
): StudyOptions {
  const drawn = subset(dataset.users.flatMap(testSamples), victims + auxiliary + held, 1, 'audit');
  const made = drawn.flatMap((sample) => sequences.history(sample) ?? []);
  return {
    model,
    tokenizer,
    catalogue: dataset.catalogue,
    sequences,
    victims: made.slice(0, victims),
    auxiliary: made.slice(victims, victims + auxiliary),
    held: made.slice(victims + auxiliary),
    popularity: popularity(dataset.users, dataset.catalogue.items.length),
    attacks: attackNames,
    depths: Array.from({ length: model.cut.layerCount + 1 }, (_, depth) => depth),
    epochs: 2,
    search: { budget: 512, tolerance: 1e-3, take: 'first' },
    titles: 60,
    seed: 1,
  };
}
