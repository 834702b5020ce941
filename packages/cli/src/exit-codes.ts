/** Exit codes of the command: done, failed, used wrongly. */
export const exitCodes = { done: 0, failed: 1, usage: 2 } as const;
