// The tables of docs/results.md on hidden states, from what `fellrec audit --json` printed:
//   npx node --conditions=source bench/audit-tables.ts smollm2.json ...
import { readFileSync } from 'node:fs';
import { type AuditResult, attackNames, type Interval, type MetricName, smallestCut } from '@fellrec/audit';

/** Depths of a table at most. */
const rows = 12;

const show = (found: Interval | undefined) =>
  found ? `${found.mean.toFixed(3)} ± ${((found.high - found.low) / 2).toFixed(3)}` : '';
const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
const table = (header: readonly string[], body: readonly (readonly string[])[]) =>
  [line(header), line(header.map(() => '---')), ...body.map(line)].join('\n');

function depthTable({ attacks, floors, model }: AuditResult, metric: MetricName): string {
  const names = attackNames.filter((name) =>
    attacks.some(({ attack, recovery }) => attack === name && recovery[metric]),
  );
  if (names.length === 0) return '';
  const step = Math.ceil((model.layerCount + 1) / rows);
  const shown = [...new Set(attacks.map(({ depth }) => depth))].filter(
    (depth) => depth % step === 0 || depth <= 2 || depth >= model.layerCount - 1,
  );
  const cell = (depth: number, name: string) =>
    show(attacks.find((one) => one.depth === depth && one.attack === name)?.recovery[metric]);
  const guesses = floors.map(({ floor, recovery }) => `${floor} ${recovery[metric]?.mean.toFixed(3)}`);
  return `**${metric}** (${guesses.join(', ')})\n\n${table(
    ['depth', ...names],
    shown.map((depth) => [String(depth), ...names.map((name) => cell(depth, name))]),
  )}`;
}

/** In users. */
function endsTable(ends: NonNullable<AuditResult['search']>['ends']): string {
  if (ends.length === 0) return '';
  const names = ['complete', 'unlisted', 'unmatched', 'mistaken'] as const;
  return table(
    ['depth', ...names],
    ends.map((end) => [String(end.depth), ...names.map((name) => String(end[name]))]),
  );
}

/** For each attack as if it were the only one. */
function smallestCuts({ attacks, model, recommendation: { metric, threshold } }: AuditResult): string {
  const { layerCount } = model;
  const rows = attackNames.flatMap((name) => {
    const own = attacks.filter(({ attack, recovery }) => attack === name && recovery[metric]);
    const k = smallestCut({ attacks: own, layerCount, metric, threshold });
    return own.length === 0 ? [] : [[name, k === undefined ? 'none' : String(k)]];
  });
  return `Smallest k by attack (${metric} below ${threshold})\n\n${table(['attack', 'k'], rows)}`;
}

function defenceTable({ defences, recommendation: { metric } }: AuditResult): string {
  if (defences.length === 0) return '';
  const names = attackNames.filter((name) =>
    defences.some(({ attacks }) =>
      attacks.some(({ attack, recovery }) => attack === name && recovery[metric]),
    ),
  );
  return `Defences (${metric})\n\n${table(
    ['depth', 'defence', 'R@10', 'loss', ...names],
    defences.map(({ depth, defence, quality, attacks }) => [
      String(depth),
      defence,
      show(quality.recallAt10),
      quality.loss.toFixed(3),
      ...names.map((name) => show(attacks.find(({ attack }) => attack === name)?.recovery[metric])),
    ]),
  )}`;
}

for (const file of process.argv.slice(2)) {
  const result = JSON.parse(readFileSync(file, 'utf8')) as AuditResult;
  const { model, data, inverter, search, seconds, recommendation, gradients } = result;
  const accuracy = inverter?.accuracy.map(({ depth, accuracy }) => `${depth}: ${accuracy.toFixed(3)}`);
  process.stdout.write(
    `${[
      `### ${model.path}${model.adapter ? `, ${model.adapter}` : ''}`,
      `${data.users} users of ${data.name}, ${data.historyTokens} history tokens; ${seconds.toFixed(0)} s`,
      ...(['tokenAccuracy', 'items', 'target', 'similarity'] as const).map((metric) =>
        depthTable(result, metric),
      ),
      inverter
        ? `Inverter: ${inverter.tokens} tokens of ${inverter.users} users, vocabulary ${inverter.vocabulary}, ${inverter.epochs} epochs; accuracy on others by depth ${accuracy!.join(', ')}.`
        : '',
      search ? `Search: at most ${search.budget} candidates a token, ${search.candidates} run.` : '',
      search ? endsTable(search.ends) : '',
      gradients.length === 0
        ? ''
        : table(
            ['attack', 'setting', 'found', 'note'],
            gradients.map(({ attack, setting, metrics, note = '' }) => [
              attack,
              setting,
              Object.entries(metrics)
                .map(([name, found]) => `${name} ${show(found)}`)
                .join(', '),
              note,
            ]),
          ),
      smallestCuts(result),
      defenceTable(result),
      recommendation.text,
    ]
      .filter((part) => part !== '')
      .join('\n\n')}\n\n`,
  );
}
