import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseAnswer, renderAnswer, renderPrompt, videoGames } from '../src/prompt.ts';

// Prompts that the transformers fixtures of SmolLM2 were computed for.
const golden = JSON.parse(readFileSync(join(import.meta.dirname, 'fixtures/prompts.json'), 'utf8')) as {
  titles: string[];
  prompt: string;
  title: string;
  answer: string;
}[];

describe('the template', () => {
  it('gives the golden prompts and answers', () => {
    expect(golden).toHaveLength(4);
    for (const { titles, prompt, title, answer } of golden) {
      expect(renderPrompt(titles, videoGames)).toBe(prompt);
      expect(renderAnswer(title)).toBe(answer);
    }
  });

  it('speaks of other domains', () => {
    const movies = { items: 'movies', item: 'movie', used: 'watched' };
    expect(renderPrompt(['Toy Story', 'GoldenEye'], movies)).toMatchInlineSnapshot(`
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

      ### Instruction:
      Given a list of movies the user has watched before, please recommend a new movie that the user likes to the user.

      ### Input:
      The user has watched the following movies before:"Toy Story", "GoldenEye"

      ### Response:
      "
    `);
  });

  it('has no line that ends in spaces, unless a title does', () => {
    expect(renderPrompt(['Doom'], videoGames)).not.toMatch(/ $/m);
  });
});

describe('parseAnswer', () => {
  it.each([
    ['"Doom - Xbox One"', 'Doom - Xbox One'],
    ['"Doom - Xbox One', 'Doom - Xbox One'],
    ['  "Doom"  \nand so on', 'Doom'],
    ['"Doom", as it has demons', 'Doom'],
    ['\n\n"Doom"', 'Doom'],
    ['Doom', 'Doom'],
    ['"Headset G35. & "Xbox One Stereo Headset"', 'Headset G35. & "Xbox One Stereo Headset'],
    ['""', ''],
    ['"', ''],
    ['', ''],
    ['   ', ''],
  ])('%j is %j', (text, title) => {
    expect(parseAnswer(text)).toBe(title);
  });

  it('takes back what renderAnswer gives', () => {
    for (const { title, answer } of golden) expect(parseAnswer(answer)).toBe(title);
    const titles = fc.string({ minLength: 1 }).filter((title) => !title.includes('\n'));
    fc.assert(
      fc.property(titles, (title) => {
        expect(parseAnswer(renderAnswer(title))).toBe(title);
      }),
    );
  });
});
