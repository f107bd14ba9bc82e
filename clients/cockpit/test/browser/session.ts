// Owns a browser for the tests: pages of a session of Cockpit, their screenshots, and the checks of accessibility.
import fs from 'node:fs';
import path from 'node:path';

import axe from 'axe-core';
import { chromium } from 'playwright-core';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';

import { LIMIT } from '../world/processes';

const shown = path.resolve(import.meta.dirname, '../../screenshots');
const pictures = path.resolve(import.meta.dirname, '../../../../target/cockpit');

export async function startBrowser(): Promise<Browser> {
    const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find(file => fs.existsSync(file));
    if (!executablePath) throw new Error('chromium is not installed; run clients/cockpit/check');
    return chromium.launch({ executablePath, args: ['--no-sandbox'] });
}

/** Opens the page without the shell of Cockpit. An error of a script fails the test that closes the page. */
export async function open(browser: Browser, address: string, where = '', options: BrowserContextOptions = {}): Promise<Page> {
    const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
    context.setDefaultTimeout(LIMIT);
    const page = await context.newPage();
    await page.goto(`${address}/cockpit/@localhost/vcpud/index.html#/${where}`);
    return page;
}

/** Returns the serious and critical violations that axe-core finds. */
export async function violations(page: Page): Promise<string[]> {
    // The page has no place for inline scripts, so that the script runs through the debugger.
    await page.evaluate(axe.source);
    const { passes, violations } = await page.evaluate<axe.AxeResults>('axe.run()');
    if (passes.length === 0) throw new Error('axe-core checked nothing');
    return violations
        .filter(({ impact }) => impact === 'serious' || impact === 'critical')
        .map(({ id, nodes }) => `${id}: ${nodes.map(node => node.html.slice(0, 200)).join('\n  ')}`);
}

/** Returns by how many pixels the page is wider than the window. */
export const overflow = (page: Page): Promise<number> =>
    page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

/** The pictures that README.md shows. */
const KEPT = ['shell', 'machine', 'plan', 'refusal', 'machine-narrow', 'machine-dark'];

/** Keeps a picture in target/cockpit, and with UPDATE_SCREENSHOTS in the environment one of README.md. */
export async function picture(page: Page, name: string, fullPage = false): Promise<void> {
    fs.mkdirSync(pictures, { recursive: true });
    const file = path.join(pictures, `${name}.png`);
    await page.screenshot({ path: file, fullPage, animations: 'disabled' });
    if (process.env.UPDATE_SCREENSHOTS && KEPT.includes(name)) fs.copyFileSync(file, path.join(shown, `${name}.png`));
}
