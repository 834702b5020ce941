// The command from its sources, as a process of its own: what tests spawn and kill.
import { main } from '../src/main.ts';

process.exitCode = await main(process.argv.slice(2));
