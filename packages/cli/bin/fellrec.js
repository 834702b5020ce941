#!/usr/bin/env node
import { main } from '@fellrec/cli/main';

process.exitCode = await main(process.argv.slice(2));
