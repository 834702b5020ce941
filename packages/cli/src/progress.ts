// Progress on standard error: one line that is rewritten on a terminal, a line a stage where there is none.
import type { FederationEvent, RoundRecord } from '@fellrec/federation';
import type { Report } from './experiment.ts';
import { mixingResult } from './mixing.ts';

export interface Progress {
  readonly report: Report;
  /** A line that stays. */
  line(text: string): void;
  event(event: FederationEvent): void;
}

/** How alike updates were, in groups if clients have such, how widely was mixed, and what choosing took. */
function mixed(record: RoundRecord): string {
  const { cosine, cosineMeans, effectiveClients, candidateSeconds } = mixingResult(record);
  const said = (mean: number | undefined, where: string) =>
    mean === undefined ? [] : [`${mean.toFixed(3)} ${where}`];
  const means = cosineMeans
    ? [...said(cosineMeans.within, 'within groups'), ...said(cosineMeans.across, 'across')]
    : said(cosine, 'on average');
  return [
    ...(candidateSeconds === undefined ? [] : [`; candidates judged in ${candidateSeconds.toFixed(1)} s`]),
    ...(means.length > 0 ? [`; cosines ${means.join(', ')}`] : []),
    ...(record.clients.length > 1
      ? [`; a mixture is of ${effectiveClients.toFixed(1)} clients in effect`]
      : []),
  ].join('');
}

export function progressOn(stream: NodeJS.WriteStream): Progress {
  const live = stream.isTTY === true;
  let last = { stage: '', percent: -1 };
  const clear = () => {
    if (live) stream.write('\r\x1b[K');
  };
  const line = (text: string) => {
    clear();
    stream.write(`${text}\n`);
  };
  const report: Report = (stage, done, total) => {
    const percent = Math.floor((100 * done) / total);
    // Without a terminal, a quarter at a time.
    const step = live ? 1 : 25;
    if (stage === last.stage && Math.floor(percent / step) === Math.floor(last.percent / step)) return;
    last = { stage, percent };
    if (live) stream.write(`\r\x1b[K${stage} ${percent} % (${done}/${total})`);
    else stream.write(`${stage} ${percent} %\n`);
  };
  return {
    report,
    line,
    event(event) {
      switch (event.type) {
        case 'client-progress':
          if (live)
            report(
              `round ${event.round + 1}, ${event.client}, loss ${event.loss.toFixed(3)}:`,
              event.step,
              event.steps,
            );
          break;
        case 'client-trained':
          line(
            `  ${event.client}: loss ${event.loss.toFixed(4)} on ${event.samples} samples, ${event.seconds.toFixed(1)} s${speed(event)}`,
          );
          break;
        case 'client-skipped':
          line(`  ${event.client}: has no training samples and takes no part`);
          break;
        case 'client-absent':
          line(`  ${event.phase} goes on without ${event.client}: ${event.reason}`);
          break;
        case 'round-started':
          line(`round ${event.round + 1}`);
          break;
        case 'client-judged':
          line(
            `  ${event.client} on its validation samples: ${event.candidates
              .map(({ name, loss }) => `${name} ${loss.toFixed(4)}`)
              .join(', ')}`,
          );
          break;
        case 'round-finished':
          line(`  validation loss ${event.validationLoss.toFixed(4)}${mixed(event)}`);
          break;
        case 'stopped-early':
          line(`stopped: the best validation loss was in round ${event.bestRound + 1}`);
          break;
        default:
      }
    },
  };
}

/** Tokens of the samples a second, and how much of what was computed was no padding. */
function speed({
  tokens,
  seconds,
}: Pick<Extract<FederationEvent, { type: 'client-trained' }>, 'tokens' | 'seconds'>): string {
  if (!tokens || tokens.computed === 0) return '';
  const fill = 1 - tokens.padding / tokens.computed;
  return ` (${Math.round(tokens.real / seconds)} tokens/s, fill ${(100 * fill).toFixed(0)} %)`;
}

/** Says nothing. */
export const silent: Progress = { report: () => {}, line: () => {}, event: () => {} };
