// The report of one run, or of several beside each other.
import type { Comparison } from '../compare/result.ts';
import { comparisonSection } from './comparison.ts';
import { html } from './html.ts';
import { type Section, writeReport } from './page.ts';
import { runSections } from './run.ts';
import type { RunFiles } from './run-files.ts';

/** A comparison goes first where there is one; an error says why there is none. */
export async function reportSections(
  runs: readonly RunFiles[],
  comparison?: Comparison | Error,
): Promise<Section[]> {
  const all: Section[] = [];
  if (comparison)
    all.push(comparison instanceof Error ? notCompared(comparison) : await comparisonSection(comparison));
  const names = distinctNames(runs);
  for (const [i, run] of runs.entries())
    for (const { title, body } of await runSections(run, `run-${i + 1}`))
      all.push({ title: comparison ? `${names[i]}: ${title.toLowerCase()}` : title, body });
  return all;
}

export async function writeRunReport(
  file: string,
  runs: readonly RunFiles[],
  comparison?: Comparison | Error,
): Promise<void> {
  const title = comparison ? 'FELLRec runs' : `FELLRec run ${runs[0]!.config.name}`;
  await writeReport(file, title, await reportSections(runs, comparison));
}

function notCompared({ message }: Error): Section {
  return {
    title: 'Comparison',
    body: html`<p class="finding">These runs cannot be compared: ${message}.</p>\n`,
  };
}

/** Names of runs, with their folder's where two have the same. */
function distinctNames(runs: readonly RunFiles[]): string[] {
  const names = runs.map(({ config }) => config.name);
  return runs.map(({ directory }, i) => {
    const name = names[i]!;
    return names.filter((other) => other === name).length > 1 ? `${name} (${directory})` : name;
  });
}
