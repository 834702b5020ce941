import { join } from 'node:path';
import { expect, test } from 'vitest';
import { loadTokenizer } from '../src/tokenizer.ts';

test('a text comes back as it was, with the spaces before its marks', async () => {
  const { encode, decode } = await loadTokenizer(
    join(import.meta.dirname, '../../cli/quickstart/stories260k'),
  );
  for (const text of ["It 's me , you do n't", 'What ? Ha !', 'a . b'])
    expect(decode(encode(text)).trim()).toBe(text);
});
