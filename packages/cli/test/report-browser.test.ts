// The report as a browser shows it: it loads nothing, fits a phone, reads in the dark, and rounds can be chosen.
import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { backgrounds } from '../src/report/page.ts';
import { readRunFiles } from '../src/report/run-files.ts';
import { writeRunReport } from '../src/report/runs.ts';
import { contrast, rgbOf } from './contrast.ts';
import { comparison, writeRun } from './made-up-runs.ts';
import { hasBrowser, type OpenBrowser, openBrowser } from './report-browser.ts';

const longName = `a-client-with-${'a-long-'.repeat(12)}name`;

describe.skipIf(!hasBrowser)('in Chromium (its package has one for Linux on x64 only)', () => {
  let opened: OpenBrowser;
  let url: string;

  beforeAll(async () => {
    opened = await openBrowser();
    const complete = join(opened.folder, 'complete');
    const stopped = join(opened.folder, 'stopped');
    await writeRun(complete, { name: 'fellrec-1', clients: ['client-0', 'client-1', 'client-2', longName] });
    await writeRun(stopped, { name: 'fedavg-1', strategy: 'fedavg', wantedRounds: 9 });
    await rm(join(stopped, 'result.json'));
    const file = join(opened.folder, 'report.html');
    await writeRunReport(file, await Promise.all([complete, stopped].map(readRunFiles)), comparison);
    url = pathToFileURL(file).href;
  });
  afterAll(() => opened?.close());

  /** The report, with what the browser asked for and complained of. */
  async function show(options: Parameters<OpenBrowser['browser']['newPage']>[0] = {}) {
    const page = await opened.browser.newPage({ viewport: { width: 1200, height: 900 }, ...options });
    const requests: string[] = [];
    const complaints: string[] = [];
    page.on('request', (request) => requests.push(request.url()));
    page.on('console', (message) => complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(error.message));
    await page.goto(url);
    return { page, requests, complaints };
  }

  const visibleRounds = (page: Page) =>
    page
      .locator('.choices')
      .first()
      .locator('.choice:visible')
      .evaluateAll((panels) => panels.map((panel) => panel.getAttribute('aria-label')));

  test('all sections are there, nothing is loaded, nothing is complained of', async () => {
    const { page, requests, complaints } = await show();
    expect(await page.getByRole('heading', { level: 2 }).allInnerTexts()).toEqual([
      'Comparison',
      ...[
        'summary',
        'data and partition',
        'losses',
        'warmth',
        'similarity and mixing',
        'clients',
        'configuration',
      ].map((part) => `fellrec-1: ${part}`),
      ...['summary', 'data and partition', 'losses', 'similarity and mixing', 'configuration'].map(
        (part) => `fedavg-1: ${part}`,
      ),
    ]);
    await expect(page.getByText('Not complete: 3 of 9 rounds are done').isVisible()).resolves.toBe(true);
    for (const label of [
      'R@10 against fedavg',
      'Training loss',
      'Validation loss',
      'Warmth over rounds',
      'R@10 per client',
    ]) {
      const box = await page.getByRole('img', { name: label }).first().boundingBox();
      expect(box!.width, label).toBeGreaterThan(400);
      expect(box!.height, label).toBeGreaterThan(100);
    }
    await page.getByRole('link', { name: 'fellrec-1: clients' }).click();
    expect(await page.getByRole('heading', { name: 'fellrec-1: clients' }).boundingBox()).toMatchObject({
      y: expect.closeTo(0, -2),
    });
    expect(requests).toEqual([url]);
    expect(complaints).toEqual([]);

    const screenshot = join(opened.folder, 'report.png');
    await page.screenshot({ path: screenshot });
    expect((await stat(screenshot)).size).toBeGreaterThan(10_000);
    await page.close();
  });

  test('rounds are chosen with the arrow keys and with the pointer, without scripts', async () => {
    const { page } = await show({ javaScriptEnabled: false });
    expect(await visibleRounds(page)).toEqual(['Round 3']);
    const mixing = page.getByRole('region', { name: /^Mixing/ }).first();
    await expect(mixing.getByRole('cell').nth(1).textContent()).resolves.toBe('0.520');

    const radios = page.locator('.choices').first().getByRole('radio');
    await radios.nth(2).focus();
    await page.keyboard.press('ArrowLeft');
    expect(await visibleRounds(page)).toEqual(['Round 2 (best)']);
    await expect(mixing.getByRole('cell').nth(1).textContent()).resolves.toBe('0.510');
    await page.locator('.choices').first().getByText('1', { exact: true }).click();
    expect(await visibleRounds(page)).toEqual(['Round 1']);
    await expect(mixing.getByRole('cell').nth(1).textContent()).resolves.toBe('0.500');
    // The other run's choice is its own.
    await expect(
      page.locator('.choices').nth(1).locator('.choice:visible').getAttribute('aria-label'),
    ).resolves.toBe('Round 3');
    await page.emulateMedia({ media: 'print' });
    expect(await visibleRounds(page)).toEqual(['Round 1', 'Round 2 (best)', 'Round 3']);
    await page.close();
  });

  test('on a phone only tables and charts scroll sideways, and hold the page', async () => {
    const { page } = await show({ viewport: { width: 360, height: 740 } });
    expect(
      await page.locator('body').evaluate((body) => ({
        page: body.ownerDocument.documentElement.scrollWidth,
        outside: [...body.querySelectorAll('*')]
          .filter((element) => !element.parentElement!.closest('.scroll'))
          .filter((element) => element.getBoundingClientRect().right > 360)
          .map(({ outerHTML }) => outerHTML.slice(0, 80)),
      })),
    ).toEqual({ page: 360, outside: [] });
    await page.close();
  });

  test.each(['light', 'dark'] as const)(
    'it is %s where the system is, and its text stands out',
    async (colorScheme) => {
      const { page } = await show({ colorScheme });
      const colors = await page.locator('html').evaluate((html) => {
        const document = html.ownerDocument;
        const of = (selector: string) =>
          document.defaultView!.getComputedStyle(document.querySelector(selector)!);
        const pixel = document.createElement('canvas').getContext('2d', { willReadFrequently: true })!;
        // As sRGB over the page, whatever notation the browser computes with.
        const rgb = (...colors: string[]) => {
          for (const color of colors) {
            pixel.fillStyle = color;
            pixel.fillRect(0, 0, 1, 1);
          }
          return [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        };
        const page = of('body').backgroundColor;
        const darkest = of('.heat td[style*="100%"]');
        return {
          page: rgb(page),
          text: rgb(page, of('body').color),
          quiet: rgb(page, of('.quiet').color),
          chart: rgb(page, of('svg').color),
          darkest: rgb(page, darkest.backgroundColor),
          darkestText: rgb(page, darkest.color),
        };
      });
      expect(colors.page).toEqual(rgbOf(backgrounds[colorScheme]));
      for (const text of [colors.text, colors.quiet, colors.chart])
        expect(contrast(text, colors.page)).toBeGreaterThan(4.5);
      expect(colors.darkest).not.toEqual(colors.page);
      expect(contrast(colors.darkestText, colors.darkest)).toBeGreaterThan(4.5);
      await page.close();
    },
  );
});
