// Attacks on hidden states, depth by depth: every attack sees the states of the same users as they would cross a cut
// there, and what it recovers is scored on their histories alone.
import { type Float32Tensor, float32 } from '@fellrec/graph';
import type { Trained } from '@fellrec/models';
import type { Finding, StateAttack } from './attacks/attack.ts';
import { catalogueAttack } from './attacks/catalogue.ts';
import { invertedAttacks } from './attacks/inverted.ts';
import { nearestAttacks } from './attacks/nearest.ts';
import { depths, offsetsOf, type Selection } from './layerwise.ts';
import { claimedPlaces } from './metrics.ts';
import type { Release, StudyOptions } from './options.ts';
import type { AttackResult, AuditResult } from './result.ts';
import { floorsOf, scorer } from './scores.ts';
import { type AuditedSequence, historyPlaces } from './sequences.ts';

export type StudyResult = Pick<AuditResult, 'inverter' | 'search' | 'floors' | 'attacks'>;

/** @throws if there is nobody to attack, or nobody else to learn from. */
export async function attackStates(options: StudyOptions): Promise<StudyResult> {
  assertUsers(options);
  const opened: StateAttack[] = [];
  try {
    return await studied(options, opened);
  } finally {
    for (const attack of opened) await attack.dispose();
  }
}

/** `opened` is filled with the attacks that it uses. */
async function studied(options: StudyOptions, opened: StateAttack[]): Promise<StudyResult> {
  const { model, attacks, report, auxiliary, epochs, search } = options;
  const score = scorer(options);
  const inverted = attacks.some((one) => one === 'inverter' || one === 'search')
    ? await invertedAttacks(options)
    : undefined;
  if (inverted) opened.push(inverted);
  if (attacks.some((one) => one === 'head' || one.startsWith('embedding')))
    opened.push(await nearestAttacks(options));
  if (attacks.includes('catalogue')) opened.push(await catalogueAttack(options));

  const hasAnswers = options.victims.some(({ answer }) => answer.length > 0);
  const groups = [
    group(options.victims, claimedPlaces, options.trained, options.release),
    group(
      attacks.includes('catalogue') && hasAnswers ? options.victims : [],
      taughtPlaces,
      options.trained,
      options.release,
    ),
    group(inverted ? auxiliary : [], historyPlaces, options.known, options.release),
    group(inverted ? options.held : [], historyPlaces, options.known, options.release),
  ];
  const selections = [...groups, ...opened].flatMap((one) => one.selections);
  const results: AttackResult[] = [];
  const take = async (findings: readonly Finding[] = []) => {
    for (const finding of findings) {
      const { attack, depth, claims } = finding;
      options.onFinding?.(finding);
      results.push({ attack, depth, recovery: await score(claims) });
    }
  };
  const wanted = new Set(options.depths);
  for await (const { depth, states } of depths(model, selections, Math.max(...wanted))) {
    report?.('attacks', depth, model.cut.layerCount);
    if (!wanted.has(depth)) continue;
    const [victims, taught, others, held] = groups.map(({ observed }, i) => observed(states[i]!, depth));
    const seen = { victims: victims!, taught: taught!, auxiliary: others!, held: held! };
    let at = groups.length;
    for (const attack of opened) {
      const extra = states.slice(at, at + attack.selections.length);
      at += extra.length;
      await take(await attack.at(depth, seen, extra));
    }
  }
  if (attacks.includes('search')) report?.('search', 0, 1);
  for (const attack of opened) await take(await attack.finish?.());
  const learned = inverted?.summary();
  return {
    floors: await floorsOf(options, score),
    attacks: results.sort(
      (a, b) => a.depth - b.depth || attacks.indexOf(a.attack) - attacks.indexOf(b.attack),
    ),
    ...(learned && {
      inverter: {
        users: auxiliary.length,
        tokens: auxiliary.flatMap(historyPlaces).length,
        vocabulary: learned.vocabulary,
        epochs,
        accuracy: learned.accuracy,
      },
    }),
    ...(learned &&
      attacks.includes('search') && {
        search: {
          budget: search.budget,
          tolerance: search.tolerance,
          candidates: learned.runs,
          ends: learned.ends,
        },
      }),
  };
}

const taughtPlaces = ({ answer }: AuditedSequence) => answer.map((place) => place - 1);

function assertUsers({ victims, auxiliary, held, attacks }: StudyOptions): void {
  if (victims.length === 0) throw new Error('audit: no users to attack');
  const learns = attacks.some((attack) => attack === 'inverter' || attack === 'search');
  if (learns && (auxiliary.length === 0 || held.length === 0))
    throw new Error(
      `audit: ${auxiliary.length} other users to train the inverter on and ${held.length} to measure it on; the data has too few, attack fewer`,
    );
}

/** States of sequences, as the server gets them, at chosen places. */
function group(
  sequences: readonly AuditedSequence[],
  placesOf: (sequence: AuditedSequence) => number[],
  trained: Trained | undefined,
  release: Release | undefined,
): { selections: readonly [Selection]; observed(states: Float32Tensor, depth: number): Float32Tensor } {
  const places = sequences.map(placesOf);
  if (!release) return { selections: [{ sequences, places, trained }], observed: (states) => states };
  const lengths = sequences.map(({ ids }) => ids.length);
  const offsets = offsetsOf(lengths);
  return {
    // A release depends on the whole sequence.
    selections: [{ sequences, places: sequences.map(({ ids }) => [...ids.keys()]), trained }],
    observed({ data, dims }, depth) {
      const d = dims[1]!;
      const rows = sequences.flatMap(({ user }, s) => {
        const own = data.subarray(offsets[s]! * d, (offsets[s]! + lengths[s]!) * d);
        const released = release(float32(own, [lengths[s]!, d]), user, depth);
        return places[s]!.map((place) => released.data.subarray(place * d, (place + 1) * d));
      });
      const chosen = new Float32Array(rows.length * d);
      for (const [i, row] of rows.entries()) chosen.set(row, i * d);
      return float32(chosen, [rows.length, d]);
    },
  };
}
