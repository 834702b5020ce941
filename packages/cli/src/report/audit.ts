// The audit's section of a report. Every number is the result's own.
import {
  type AttackName,
  type AuditResult,
  attackNames,
  type DefenceResult,
  type Interval,
  knowledges,
  type MetricName,
  metricNames,
  type Recovery,
} from '@fellrec/audit';
import { attackTitles, defenceFigure, depthFigures, metricTitles } from './audit-charts.ts';
import { figure } from './chart.ts';
import { definitionList, type Html, html, htmlTable, tableIfAny } from './html.ts';
import { count, missing, percent } from './numbers.ts';
import type { Section } from './page.ts';

/** What was audited and what follows, then charts, then tables of all numbers; parts without results are left out. */
export async function auditSection(result: AuditResult): Promise<Section> {
  const { model, data, seed, recommendation } = result;
  const defences = defenceFigure(result);
  const figures = [...depthFigures(result), ...(defences ? [defences] : [])];
  return {
    title: `Audit of ${model.path}`,
    body: html`<p class="quiet">${model.layerCount} layers of ${model.hiddenSize}, ${count(data.users)} users of ${data.name}, seed ${seed}</p>
<p class="finding"><strong>${recommendation.text}</strong></p>
${assumptions(result)}
${await Promise.all(figures.map(figure))}
<h3>All numbers</h3>
<p class="quiet">Means over users with their 95 % intervals.</p>
${attackTable(result)}
${floorTable(result)}
${gradientTable(result)}
${defenceTable(result)}
${costTable(result)}
<h3>What was audited, and how</h3>
${setting(result)}
${inverterTable(result)}
`,
  };
}

function assumptions({ recommendation: { threshold, metric, k, without } }: AuditResult): Html {
  const smallest = (k: number | undefined) => (k === undefined ? 'none' : String(k));
  return htmlTable({
    caption: `Smallest k at which every attack recovers less than ${threshold} (${metricTitles[metric]})`,
    header: ['attackers', 'k'],
    rows: [
      ['all', smallest(k)],
      ...without.map((assumption) => [`without ${knowledges[assumption.knowledge]}`, smallest(assumption.k)]),
    ],
  });
}

function attackTable({ attacks }: AuditResult): Html | undefined {
  const rank = (attack: AttackName) => attackNames.indexOf(attack);
  const metrics = measured(attacks);
  return tableIfAny({
    caption: 'Attacks on hidden states',
    header: ['depth', 'attack', ...metrics.map((metric) => metricTitles[metric])],
    headings: 2,
    rows: [...attacks]
      .sort((a, b) => a.depth - b.depth || rank(a.attack) - rank(b.attack))
      .map(({ depth, attack, recovery }) => [
        String(depth),
        attackTitles[attack],
        ...metrics.map((metric) => interval(recovery[metric])),
      ]),
  });
}

function floorTable({ floors }: AuditResult): Html | undefined {
  const metrics = measured(floors);
  return tableIfAny({
    caption: 'Floors: what guessing without any state recovers',
    header: ['floor', ...metrics.map((metric) => metricTitles[metric])],
    rows: floors.map(({ floor, recovery }) => [
      floor,
      ...metrics.map((metric) => interval(recovery[metric])),
    ]),
  });
}

function gradientTable({ gradients }: AuditResult): Html | undefined {
  const metrics = [...new Set(gradients.flatMap((result) => Object.keys(result.metrics)))];
  return tableIfAny({
    caption: 'Attacks on gradients and updates',
    header: ['attack', 'setting', 'knows', 'note', ...metrics],
    headings: 4,
    rows: gradients.map((result) => [
      result.attack,
      result.setting,
      result.uses.map((knowledge) => knowledges[knowledge]).join('; ') || 'nothing else',
      result.note ?? '',
      ...metrics.map((metric) => interval(result.metrics[metric])),
    ]),
  });
}

function defenceTable({ defences, recommendation: { metric } }: AuditResult): Html | undefined {
  const attacks = attackNames.filter((name) =>
    defences.some((defence) => defence.attacks.some(({ attack }) => attack === name)),
  );
  const recovered = (defence: DefenceResult, name: AttackName) =>
    defence.attacks.find(({ attack }) => attack === name)?.recovery[metric];
  return tableIfAny({
    caption: `Defences: quality through the cut, and what attacks recover (${metricTitles[metric]})`,
    header: ['defence', 'depth', 'epsilon', 'R@10', 'loss', 'users', ...attacks.map((a) => attackTitles[a])],
    rows: defences.map((result) => [
      result.defence,
      String(result.depth),
      result.epsilon === undefined ? missing : String(result.epsilon),
      interval(result.quality.recallAt10, 4),
      result.quality.loss.toFixed(3),
      count(result.quality.users),
      ...attacks.map((name) => interval(recovered(result, name))),
    ]),
  });
}

function costTable({ costs, recommendation }: AuditResult): Html | undefined {
  return tableIfAny({
    caption: 'What keeping the first k layers and the last one costs a client',
    header: ['k', 'parameters held', "layers' work", 'bytes per token'],
    rows: costs.map(({ k, parameters, layers, bytesPerToken }) => [
      k === recommendation.k ? `${k} (recommended)` : String(k),
      percent(parameters),
      percent(layers),
      count(bytesPerToken),
    ]),
  });
}

function setting({ model, data, seed, inverter, search, seconds }: AuditResult): Html {
  const entries: [string, string][] = [
    ['model', model.path],
    ['hash', model.hash],
    ['recommender', model.recommender],
    ['adapter', model.adapter ?? 'none'],
    ['data', `${data.name}, ${count(data.items)} items`],
    ['attacked', `${count(data.users)} users, ${count(data.historyTokens)} history tokens`],
  ];
  if (inverter)
    entries.push([
      'inverter',
      `trained on ${count(inverter.users)} other users (${count(inverter.tokens)} tokens), ${inverter.epochs} epochs, vocabulary of ${count(inverter.vocabulary)}`,
    ]);
  if (search)
    entries.push([
      'search',
      `up to ${count(search.budget)} candidates per token, ${count(search.candidates)} in all, relative tolerance ${search.tolerance}`,
    ]);
  entries.push(['seed', String(seed)], ['took', `${count(Math.round(seconds))} s`]);
  return definitionList(entries);
}

function inverterTable({ inverter }: AuditResult): Html | undefined {
  return tableIfAny({
    caption: "The trained inverter's token accuracy on prompts of still other users",
    header: ['depth', 'token accuracy'],
    rows: (inverter?.accuracy ?? []).map(({ depth, accuracy }) => [String(depth), accuracy.toFixed(3)]),
  });
}

/** The metrics that any of them has, in their usual order. */
function measured(results: readonly { readonly recovery: Recovery }[]): MetricName[] {
  return metricNames.filter((metric) => results.some(({ recovery }) => recovery[metric]));
}

const interval = (value: Interval | undefined, digits = 3) =>
  value
    ? `${value.mean.toFixed(digits)} [${value.low.toFixed(digits)}, ${value.high.toFixed(digits)}]`
    : missing;
