// A report: one HTML file that loads nothing, made of sections.
import { writeWhole } from '@fellrec/federation';
import { Html, html } from './html.ts';

export interface Section {
  readonly title: string;
  readonly body: Html;
}

// Charts take their text's colour from the page, and their series' colours read on both backgrounds (chart.ts).
export const backgrounds = { light: '#ffffff', dark: '#14171c' } as const;

const style = `
:root { color-scheme: light dark; --text: #1b1f24; --quiet: #59626d; --line: #d5dae0; --raised: #f3f5f7; --heat: #2f7ed8; --page: ${backgrounds.light}; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7eb; --quiet: #9aa4b0; --line: #363c45; --raised: #1e232a; --page: ${backgrounds.dark}; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
a { color: inherit; }
nav ul { columns: 15rem; padding-left: 1.2rem; }
.quiet, figcaption, caption { color: var(--quiet); }
.finding { background: var(--raised); border-left: 0.3rem solid currentColor; padding: 0.75rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; }
dt { color: var(--quiet); }
dd { margin: 0; }
figure { margin: 1.5rem 0; }
figcaption, caption { font-size: 0.9rem; text-align: left; }
.scroll { overflow: auto; max-height: 36rem; margin: 1rem 0; }
figure .scroll { max-height: none; }
svg { display: block; width: 100%; min-width: 30rem; max-width: 48rem; height: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { padding-bottom: 0.3rem; max-width: min(58rem, calc(100vw - 4rem)); }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
tbody th, th.row { text-align: left; font-weight: normal; }
tbody th { white-space: normal; min-width: 6rem; vertical-align: top; }
tbody th:first-child { position: sticky; left: 0; background: var(--page); }
thead th { position: sticky; top: 0; z-index: 1; background: var(--page); font-weight: 600; }
tbody tr:hover > * { background: var(--raised); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1.5rem; align-items: start; }
.heat th, .heat td { padding: 0.25rem 0.45rem; white-space: nowrap; min-width: 0; max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }
.heat td { background: color-mix(in srgb, var(--heat) calc(var(--shade, 0%) * 0.55), transparent); }
.choices { display: flex; flex-wrap: wrap; gap: 0.4rem; min-width: 0; margin: 1rem 0; padding: 0.75rem; border: 1px solid var(--line); }
.choices label { padding: 0.2rem 0.7rem; border: 1px solid var(--line); border-radius: 1rem; cursor: pointer; }
.choices label:has(:checked) { background: var(--raised); border-color: currentColor; font-weight: 600; }
.choices label:has(:focus-visible) { outline: 2px solid var(--heat); outline-offset: 2px; }
.choice { order: 1; flex: 1 0 100%; min-width: 0; max-width: 100%; }
@media screen { @supports selector(:has(*)) { label:not(:has(:checked)) + .choice { display: none; } } }
@media (max-width: 32rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.4rem; } }
@media print { .scroll { overflow: visible; max-height: none; } }
`;

/** The whole file's text. The policy in its head forbids browsers to load anything or to run scripts. */
export function page(title: string, sections: readonly Section[]): string {
  const contents =
    sections.length < 2
      ? undefined
      : html`<nav><ul>${sections.map((section, i) => html`<li><a href="#section-${i + 1}">${section.title}</a></li>`)}</ul></nav>\n`;
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>${title}</title>
<style>${new Html(style)}</style>
</head>
<body>
<h1>${title}</h1>
${contents}${sections.map(
  (section, i) => html`<section id="section-${i + 1}">
<h2>${section.title}</h2>
${section.body}</section>
`,
)}</body>
</html>
`.markup;
}

/** Writes the report, whole or not at all: a report that is there already stays until the new one is complete. */
export async function writeReport(file: string, title: string, sections: readonly Section[]): Promise<void> {
  await writeWhole(file, page(title, sections)).catch((cause) => {
    throw new Error(`report: cannot write ${file}: ${(cause as Error).message}`, { cause });
  });
}
