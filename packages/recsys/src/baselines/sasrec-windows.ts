// What SASRec reads: windows of users' items, several short ones in one row of a batch.
import { type Feeds, float32, int64 } from '@fellrec/graph';

/** Items that are read together, oldest first, and what is asked after some of them. */
export interface Window {
  readonly items: readonly number[];
  /** The first place that something is asked of: all from here on are. */
  readonly from: number;
  /** The item that follows each of these places; absent where scores are wanted. */
  readonly targets?: readonly number[];
}

/** Windows that share a row; none sees another. */
export type Row = readonly Window[];

/**
 * Every item but the first is the target of one window. A sequence longer than a window is read in windows that overlap
 * by half, so that no target has less than half a window before it.
 */
export function trainingWindows(train: readonly number[], maxLength: number): Window[] {
  const windows: Window[] = [];
  const stride = Math.ceil(maxLength / 2);
  const last = train.length - 1;
  for (let asked = 0; asked < last; ) {
    const end = Math.min(asked === 0 ? maxLength : asked + stride, last);
    const start = Math.max(0, end - maxLength);
    windows.push({
      items: train.slice(start, end),
      from: asked - start,
      targets: train.slice(asked + 1, end + 1),
    });
    asked = end;
  }
  return windows;
}

/** Rows of at most `maxLength` items, filled one after the other in the windows' order. */
export function packed(windows: readonly Window[], maxLength: number): Row[] {
  const rows: Window[][] = [];
  let free = 0;
  for (const window of windows) {
    if (window.items.length > free) {
      rows.push([]);
      free = maxLength;
    }
    rows.at(-1)!.push(window);
    free -= window.items.length;
  }
  return rows;
}

/** Places that something is asked of. */
export const asked = (row: Row): number => row.reduce((n, { items, from }) => n + items.length - from, 0);

/** Batches of rows with about `size` targets each: a batch is complete with the row that reaches it. */
export function batches(rows: readonly Row[], size: number): Row[][] {
  const found: Row[][] = [];
  let count = size;
  for (const row of rows) {
    if (count >= size) {
      found.push([]);
      count = 0;
    }
    found.at(-1)!.push(row);
    count += asked(row);
  }
  return found;
}

/** Scores are lowered by this where an item may not be read. */
const unread = -1e9;

/** Targets of a batch are filled up to a multiple of this with ones of weight 0: few shapes, so memory is used again. */
const targetStep = 128;

/**
 * `items` and `positions` [rows, time], `mask` [rows, 1, time, time] and `places` [places], all that something is asked
 * of. A place reads itself and what is before it in its window.
 */
export function rowFeeds(rows: readonly Row[], time: number): Feeds {
  const items = new Int32Array(rows.length * time);
  const positions = new Int32Array(rows.length * time);
  const mask = new Float32Array(rows.length * time * time).fill(unread);
  const places: number[] = [];
  for (const [r, row] of rows.entries()) {
    let column = 0;
    for (const window of row) {
      const start = column;
      for (const [position, item] of window.items.entries()) {
        const place = r * time + column;
        items[place] = item;
        positions[place] = position;
        mask.fill(0, place * time + start, place * time + column + 1);
        if (position >= window.from) places.push(place);
        column++;
      }
    }
    // Padding reads itself.
    for (; column < time; column++) mask[(r * time + column) * time + column] = 0;
  }
  return {
    items: int64(items, [rows.length, time]),
    positions: int64(positions, [rows.length, time]),
    mask: float32(mask, [rows.length, 1, time, time]),
    places: int64(places, [places.length]),
  };
}

/** As `rowFeeds`, with `labels` and `weights` [places]: the weights of the targets are equal and sum to 1. */
export function targetFeeds(rows: readonly Row[], time: number): Feeds {
  const feeds = rowFeeds(rows, time);
  const targets = rows.flatMap((row) => row.flatMap(({ targets }) => targets ?? []));
  const count = Math.ceil(targets.length / targetStep) * targetStep;
  const places = new BigInt64Array(count);
  places.set(feeds.places!.data as BigInt64Array);
  const labels = new Int32Array(count);
  labels.set(targets);
  return {
    ...feeds,
    places: { dtype: 'int64', dims: [count], data: places },
    labels: int64(labels, [count]),
    weights: float32(new Float32Array(count).fill(1 / targets.length, 0, targets.length), [count]),
  };
}
