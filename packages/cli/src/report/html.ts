// HTML as a template whose values are escaped: what a user named cannot become markup.

/** Markup that was made here. Everything else is text. */
export class Html {
  readonly markup: string;
  constructor(markup: string) {
    this.markup = markup;
  }
}

type Value = Html | string | number | undefined | readonly Value[];

/** `` html`<p>${text}</p>` ``: text is escaped, `Html` stands as it is, lists are joined, undefined is nothing. */
export function html(parts: TemplateStringsArray, ...values: readonly Value[]): Html {
  return new Html(parts.map((part, i) => part + toMarkup(values[i])).join(''));
}

function toMarkup(value: Value): string {
  if (value === undefined) return '';
  if (value instanceof Html) return value.markup;
  return Array.isArray(value) ? value.map(toMarkup).join('') : escapeHtml(String(value));
}

const entities: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** For text between tags and in quoted attributes. */
function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => entities[character]!);
}

export interface Table {
  readonly caption: string;
  readonly header: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** How many columns from the left say what a row is: 1 unless given. The others are aligned to the right. */
  readonly headings?: number;
}

/** A table that scrolls within itself where it is wider than the page. */
export function htmlTable({ caption, header, rows, headings = 1 }: Table): Html {
  const cell = (text: string, column: number) =>
    column < headings ? html`<th scope="row">${text}</th>` : html`<td>${text}</td>`;
  const title = (text: string, column: number) =>
    column < headings ? html`<th scope="col" class="row">${text}</th>` : html`<th scope="col">${text}</th>`;
  return html`<div class="scroll" role="region" tabindex="0" aria-label="${caption}"><table>
<caption>${caption}</caption>
<thead><tr>${header.map(title)}</tr></thead>
<tbody>
${rows.map((row) => html`<tr>${row.map(cell)}</tr>\n`)}</tbody>
</table></div>
`;
}

export const tableIfAny = (table: Table) => (table.rows.length > 0 ? htmlTable(table) : undefined);

export function definitionList(entries: readonly (readonly [string, string])[]): Html {
  return html`<dl>
${entries.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>\n`)}</dl>
`;
}
