/**
 * The factor of the learning rate at `step` (from 0): rises linearly over `warmupSteps`, then falls linearly to 0 at
 * `totalSteps`, as transformers' `linear` schedule.
 */
export function linearSchedule(step: number, totalSteps: number, warmupSteps = 0): number {
  if (step < warmupSteps) return step / warmupSteps;
  return Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmupSteps));
}
