// Loaded before a program, it makes the program's clock wrong by CLOCK_SHIFT_HOURS.
const shiftMs = 3_600_000 * Number(process.env['CLOCK_SHIFT_HOURS']);
const { now } = Date;

globalThis.Date = class extends Date {
  constructor(...parts: unknown[]) {
    super(...((parts.length > 0 ? parts : [now() + shiftMs]) as [number]));
  }
  static override now(): number {
    return now() + shiftMs;
  }
} as DateConstructor;
