// Ranking by beams along the tree of the catalogue's titles, without each user's history, against transformers' `generate`
// with `prefix_allowed_tokens_fn` on the same prompts, alternating, and whether both find the same lists.
//
//   node bench/constrained.ts --model FOLDER --data FOLDER --python PYTHON [--users 100] [--beams 20] [--rounds 2]
//     [--base float32,int8,int8-fast] [--batch 8] [--peer-dtypes fp32] [--peer-batches 4,8] [--threads N] [--cache FOLDER]
//
// --data is what `fellrec data import` wrote. PYTHON has torch 2.14.1 and transformers 5.23.0; gguf and accelerate if the
// model is a .gguf file.
import { parseArgs } from 'node:util';
import { tokenTree } from '../packages/models/src/index.ts';
import { answerTokens, promptTokens } from '../packages/recsys/src/bigrec/text.ts';
import { subset, testSamples } from '../packages/recsys/src/index.ts';
import { rounded, total } from './contest.ts';
import {
  type GenerationMeasured,
  generationContest,
  generationFlags,
  openPrompts,
  sameShare,
} from './generation-contest.ts';

const { values: o } = parseArgs({
  options: {
    ...generationFlags,
    users: { type: 'string', default: '100' },
    beams: { type: 'string', default: '20' },
    batch: { type: 'string', default: '8' },
    'peer-dtypes': { type: 'string', default: 'fp32' },
    'peer-batches': { type: 'string', default: '4,8' },
  },
});
const seed = 1;

const { model, users, text, calibration } = await openPrompts(o.model, o.data, o.cache);
const sequences = text.catalogue.items.map(({ title }) => answerTokens(title, text));
const maxNewTokens = tokenTree(sequences).depth;
const asked = subset(users.flatMap(testSamples), Number(o.users), seed, 'test')
  .map(({ history, seen }) => ({ prompt: promptTokens(history, maxNewTokens, text).value, seen }))
  .sort((a, b) => a.prompt.length - b.prompt.length);
await generationContest(
  { ...o, model },
  {
    prompts: asked.map(({ prompt }) => prompt),
    beams: Number(o.beams),
    maxNewTokens,
    eosIds: text.eosIds,
    calibration,
    along: { sequences, histories: asked.map(({ seen }) => seen) },
  },
  {
    name: 'constrained',
    peerScript: 'peer_constrained.py',
    facts: {
      titles: sequences.length,
      meanTitleTokens: rounded(total(sequences.map(({ length }) => length)) / sequences.length, 1),
    },
    alike: (found, exact, name) => ({
      [`same list as ${name}`]: sameShare(found, exact),
      sharedTitles: sharedTitles(found, exact),
    }),
  },
);

/** The share of the second's titles that the first found for the same prompt. */
function sharedTitles({ lists }: GenerationMeasured, { lists: other }: GenerationMeasured): number {
  const shared = lists.map((titles, i) => {
    const has = new Set(titles.map(String));
    return other[i]!.filter((ids) => has.has(String(ids))).length;
  });
  return rounded(total(shared) / total(other.map(({ length }) => length)), 4);
}
