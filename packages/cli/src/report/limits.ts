// Up to where a report shows everything. Beyond, it says what it leaves out and sums up the rest.

/** Curves of a chart: more cannot be told apart, and give way to their median and range. */
export const maxCurves = 12;
/** Clients of a matrix between clients: a wider table cannot be read. */
export const maxHeatClients = 50;
/** Clients of a table with a row each. */
export const maxTableClients = 200;
/** Cells of all rounds' matrices: more rounds are shown with gaps. */
export const maxCells = 40_000;
/** Bytes of a run's files: those of 200 clients and 100 rounds have about so many. */
export const maxRunBytes = 256 * 2 ** 20;
