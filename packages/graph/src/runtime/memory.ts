// Memory that is used again and again for outputs of like sizes.
import type { Memory } from './runtime.ts';

export interface MemoryPool extends Memory {
  /** Takes arrays back that nobody reads any more. */
  give(arrays: Iterable<Float32Array>): void;
}

/**
 * Lends the smallest free buffer that is large enough, but none of more than twice the size: what is never given back
 * would hold it. A new one replaces the largest free one that was too small.
 */
export function memoryPool(): MemoryPool {
  const free: ArrayBuffer[] = []; // by size, ascending
  const firstFrom = (bytes: number) => {
    const place = free.findIndex((buffer) => buffer.byteLength >= bytes);
    return place === -1 ? free.length : place;
  };
  return {
    take(length) {
      const bytes = 4 * length;
      const place = firstFrom(bytes);
      const found = free[place];
      if (found && found.byteLength <= 2 * bytes) {
        free.splice(place, 1);
        return new Float32Array(found, 0, length);
      }
      if (place > 0) free.splice(place - 1, 1);
      return new Float32Array(length);
    },
    give(arrays) {
      for (const { buffer } of arrays) free.splice(firstFrom(buffer.byteLength), 0, buffer as ArrayBuffer);
    },
  };
}
