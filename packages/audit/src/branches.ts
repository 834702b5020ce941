// Many candidates for many places of one sequence in one pass: each candidate token stands behind the sequence, at the
// position of the place it is tried at, and reads what comes before that place and itself. Only attention knows.
import { float32, type Tensor } from '@fellrec/graph';
import type { CutModel, TokenLayout } from '@fellrec/models';

/** Below any score, yet finite: a softmax gives these places exactly 0. */
const masked = -1e9;

/** For each sequence of a layout the places that its last tokens are tried at. */
export type Branches = readonly (readonly number[])[];

const branched = new WeakMap<TokenLayout, Branches>();

/** The layout of sequences whose last tokens are candidates for earlier places. */
export function withBranches(layout: TokenLayout, branches: Branches): TokenLayout {
  const own = { ...layout };
  branched.set(own, branches);
  return own;
}

/** The model, also for layouts with branches. Its layers have to read by `positions` and `mask`, as LLaMA's. */
export function branching(cut: CutModel): CutModel {
  const known = new WeakMap<TokenLayout, Record<string, Tensor>>();
  return {
    ...cut,
    feeds(layout) {
      const branches = branched.get(layout);
      if (!branches) return cut.feeds(layout);
      const feeds = known.get(layout) ?? branchedFeeds(cut.feeds(layout), layout, branches);
      known.set(layout, feeds);
      return feeds;
    },
  };
}

function branchedFeeds(
  feeds: Readonly<Record<string, Tensor>>,
  { lengths, time, prefix }: TokenLayout,
  branches: Branches,
): Record<string, Tensor> {
  const { positions, mask } = feeds;
  if (!positions || !mask) throw new Error('audit: candidates cannot be tried in a model that is not causal');
  const width = prefix + time;
  const groups = mask.dims[2]! / time;
  const own = (positions.data as BigInt64Array).slice();
  const readable = (mask.data as Float32Array).slice();
  for (const [b, places] of branches.entries())
    for (const [i, place] of places.entries()) {
      const row = lengths[b]! - places.length - prefix + i; // among the sequence's own
      own[b * time + row] = BigInt(place);
      for (let group = 0; group < groups; group++) {
        const from = ((b * groups + group) * time + row) * width;
        readable.fill(masked, from, from + width);
        readable.fill(0, from, from + place);
        readable[from + prefix + row] = 0;
      }
    }
  return {
    ...feeds,
    positions: { ...positions, data: own } as Tensor,
    mask: float32(readable, mask.dims),
  };
}
