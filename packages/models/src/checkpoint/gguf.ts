import type { StoredTensor } from '@fellrec/graph';
import type { LlamaConfig } from './config.ts';
export async function openGguf(
  file: string,
  cacheDir: string,
): Promise<{ config: LlamaConfig; tensors: ReadonlyMap<string, StoredTensor> }> {
  throw new Error(`model: ${file}: GGUF ${cacheDir}`);
}
