// A headless Chromium that comes with the development packages, for tests of what was written for browsers.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inflate } from '@sparticuz/chromium';
import { type Browser, chromium } from 'playwright-core';

export interface OpenBrowser {
  readonly browser: Browser;
  /** A temporary folder, which goes with the browser. */
  readonly folder: string;
  close(): Promise<void>;
}

/** Whether the package's Chromium runs here: it is one for Linux on x64. */
export const hasBrowser = process.platform === 'linux' && process.arch === 'x64';

export async function openBrowser(): Promise<OpenBrowser> {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-browser-'));
  const remove = () => rm(folder, { recursive: true, force: true });
  try {
    const packed = join(dirname(fileURLToPath(import.meta.resolve('@sparticuz/chromium'))), '..', 'bin');
    // It unpacks into the temporary folder of the process, where it would take another's half-written file for its own.
    const { TMPDIR } = process.env;
    process.env.TMPDIR = folder;
    const [executablePath] = await Promise.all(
      ['chromium.br', 'fonts.tar.br', 'al2023.tar.br'].map((name) => inflate(join(packed, name))),
    );
    if (TMPDIR === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = TMPDIR;
    // The one that comes with the fonts looks for them in folders of its own choice.
    const fonts = join(folder, 'fonts.conf');
    await writeFile(
      fonts,
      `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${join(folder, 'fonts')}</dir><cachedir>${join(folder, 'fonts-cache')}</cachedir></fontconfig>
`,
    );
    const browser = await chromium.launch({
      executablePath: executablePath!,
      // Its own libraries and fonts: the same page on every machine.
      env: {
        ...process.env,
        HOME: folder,
        TMPDIR: folder,
        LD_LIBRARY_PATH: join(folder, 'al2023', 'lib'),
        FONTCONFIG_FILE: fonts,
      },
    });
    return {
      browser,
      folder,
      async close() {
        await browser.close();
        await remove();
      },
    };
  } catch (error) {
    await remove();
    throw error;
  }
}
