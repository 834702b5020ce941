// A checkpoint's tokenizer.json through Hugging Face's tokenizer library.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';

export interface Tokenizer {
  /** Of what it was read from: two that encode alike may differ in it. */
  readonly hash: string;
  /** Token ids, with the begin-of-sequence token where the model's tokenizer adds one. */
  encode(text: string): number[];
  /** Token ids of a continuation: no special tokens are added. */
  encodeContinuation(text: string): number[];
  /** Text without special tokens. */
  decode(ids: readonly number[]): string;
}

/** What a tokenizer is read from; the second may be missing. */
export const tokenizerFiles = ['tokenizer.json', 'tokenizer_config.json'] as const;

/** The text as it was: the library's clean-up would make `It's` of `It 's`. */
const decoding = { skip_special_tokens: true, clean_up_tokenization_spaces: false };

/** @throws if the folder has no usable tokenizer.json. */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const [file, configFile] = tokenizerFiles.map((name) => join(directory, name)) as [string, string];
  const texts = await Promise.all([readText(file, true), readText(configFile, false)]);
  const [tokenizer, config] = [parsed(texts[0], file), parsed(texts[1], configFile)];
  let library: HuggingFaceTokenizer;
  try {
    library = new HuggingFaceTokenizer(tokenizer, config);
  } catch (cause) {
    throw new Error(`tokenizer: ${file} cannot be used: ${(cause as Error).message}`, { cause });
  }
  return {
    hash: createHash('sha256').update(JSON.stringify(texts)).digest('hex'),
    encode: (text) => library.encode(text).ids,
    encodeContinuation: (text) => library.encode(text, { add_special_tokens: false }).ids,
    decode: (ids) => (ids.length === 0 ? '' : library.decode([...ids], decoding)),
  };
}

function readText(file: string, required: boolean): Promise<string> {
  return readFile(file, 'utf8').catch((cause) => {
    if (!required && cause.code === 'ENOENT') return '{}';
    throw new Error(`tokenizer: cannot read ${file}; put the model's tokenizer.json into its folder`, {
      cause,
    });
  });
}

function parsed(text: string, file: string): object {
  try {
    return JSON.parse(text) as object;
  } catch (cause) {
    throw new Error(`tokenizer: ${file} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
}
