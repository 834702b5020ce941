// Generation for the evaluation of users against transformers' `generate` on the same prompts, alternating, and whether
// both find the same best beam.
//
//   node bench/generation.ts --model FOLDER --data FOLDER --python PYTHON [--users 200] [--rounds 2]
//     [--base float32,int8,int8-fast] [--batch 16] [--peer-dtypes fp32,bf16] [--peer-batches 8,16] [--threads N] [--cache FOLDER]
//
// --data is what `fellrec data import` wrote. PYTHON has torch 2.13.0 and transformers 5.23.0; gguf and accelerate if the
// model is a .gguf file.
import { parseArgs } from 'node:util';
import { promptTokens } from '../packages/recsys/src/bigrec/text.ts';
import { subset, testSamples } from '../packages/recsys/src/index.ts';
import { generationContest, generationFlags, openPrompts, sameShare } from './generation-contest.ts';

const { values: o } = parseArgs({
  options: {
    ...generationFlags,
    users: { type: 'string', default: '200' },
    batch: { type: 'string', default: '16' },
    'peer-dtypes': { type: 'string', default: 'fp32,bf16' },
    'peer-batches': { type: 'string', default: '8,16' },
  },
});
const seed = 1;
const maxNewTokens = 24;

const { model, users, text, calibration } = await openPrompts(o.model, o.data, o.cache);
const prompts = subset(users.flatMap(testSamples), Number(o.users), seed, 'test')
  .map(({ history }) => promptTokens(history, maxNewTokens, text).value)
  .sort((a, b) => a.length - b.length);
await generationContest(
  { ...o, model },
  { prompts, beams: 4, maxNewTokens, eosIds: text.eosIds, calibration },
  {
    name: 'generation',
    peerScript: 'peer_generate.py',
    facts: {},
    alike: (found, exact, name) => ({ [`same best beam as ${name}`]: sameShare(found, exact, 1) }),
  },
);
