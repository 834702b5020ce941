/** What a client's test users say of parameters: all that a test sends to the server. */
export interface TestResult {
  /** Means over these users by name, such as "recall@10". */
  readonly metrics: Readonly<Record<string, number>>;
  readonly users: number;
  /** Users whose oldest history did not fit the context. */
  readonly truncated: number;
}
