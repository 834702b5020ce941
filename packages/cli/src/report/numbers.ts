// Numbers as a report writes them.

export const missing = '–';
export const count = (n: number) => n.toLocaleString('en-US');
export const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
export const fixed = (value: number | undefined, digits: number) => value?.toFixed(digits) ?? missing;
export const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** 42 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes === 0) return `${whole} s`;
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${count(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}
