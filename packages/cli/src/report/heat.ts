// Matrices between clients as tables whose cells are shaded, and a choice of rounds that needs no script.
import { type Html, html } from './html.ts';
import { fixed } from './numbers.ts';

export interface HeatMap {
  readonly caption: string;
  readonly names: readonly string[];
  readonly values: readonly (readonly number[])[];
  /** The value of the darkest shade; 0 has none. */
  readonly largest: number;
}

/** Every cell has its number: the shade only helps to find it. */
export function heatMap({ caption, names, values, largest }: HeatMap): Html {
  const cell = (value: number) => {
    const shade = largest > 0 ? Math.round(100 * Math.min(1, Math.max(0, value / largest))) : 0;
    return html`<td style="--shade:${shade}%">${fixed(value, 3)}</td>`;
  };
  return html`<div class="scroll" role="region" tabindex="0" aria-label="${caption}"><table class="heat">
<caption>${caption}</caption>
<thead><tr><td></td>${names.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
<tbody>
${values.map((row, i) => html`<tr><th scope="row">${names[i]}</th>${row.map(cell)}</tr>\n`)}</tbody>
</table></div>
`;
}

export interface Choice {
  readonly label: string;
  readonly body: Html;
}

/**
 * One of several to look at, chosen with the pointer or the arrow keys: radio buttons, each before what it shows. On
 * paper, and where styles are not applied, all are there. `group` is the page's own name for it.
 */
export function choices(legend: string, group: string, all: readonly Choice[], chosen: number): Html {
  return html`<fieldset class="choices"><legend>${legend}</legend>
${all.map(
  ({ label, body }, i) =>
    html`<label><input type="radio" name="${group}"${i === chosen ? html` checked` : undefined}> ${label}</label>
<div class="choice" role="group" aria-label="${legend} ${label}">${body}</div>
`,
)}</fieldset>
`;
}
