// Owns the tests of how the page looks and reads: accessibility, narrow windows, dark mode, and German.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, BrowserContextOptions, Page } from 'playwright-core';

import { ROOT, World } from '../world/world';
import { open, overflow, picture, startBrowser, violations } from './session';

let world: World;
let browser: Browser;
let address: string;

before(async () => {
    world = await World.start();
    await world.startService();
    [browser] = await Promise.all([
        startBrowser(), world.startAutoscaler(),
        world.startGuest('web', { vcpus: 3 }), world.startGuest('db', { linux: false, vcpus: 2 }),
        world.startGuest('mail-server-of-the-department', { linux: false }),
    ]);
    address = await world.startCockpit(ROOT);
});

after(async () => {
    await browser?.close();
    await world?.stop();
});

/** Opens the page of a machine, and selects a number of vCPUs. */
async function openPlan(options: BrowserContextOptions = {}): Promise<Page> {
    const page = await open(browser, address, 'machine/web', options);
    await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('5');
    await page.getByText('Adds vCPUs 3-4.').waitFor();
    await page.locator('.vcpud-legend').getByText(/^\d+\.\d$/).first().waitFor();
    return page;
}

const windows: [string, BrowserContextOptions][] = [
    ['wide', {}],
    ['narrow', { viewport: { width: 400, height: 800 } }],
    ['dark', { colorScheme: 'dark' }],
    ['narrow-dark', { viewport: { width: 400, height: 800 }, colorScheme: 'dark' }],
];

for (const [name, options] of windows) {
    test(`has no serious violation of accessibility, and fits the window: ${name}`, async () => {
        const list = await open(browser, address, '', options);
        await list.getByRole('link', { name: 'web' }).waitFor();
        await list.locator('.vcpud-number').first().waitFor();
        assert.deepEqual(await violations(list), []);
        assert.equal(await overflow(list), 0);
        await picture(list, `list-${name}`);

        const page = await openPlan(options);
        assert.deepEqual(await violations(page), []);
        assert.equal(await overflow(page), 0);
        await picture(page, `machine-${name}`, options.viewport === undefined);

        await page.getByRole('checkbox', { name: 'Select vCPU 2' }).check();
        await page.getByRole('button', { name: 'Pin selected' }).click();
        await page.getByRole('dialog', { name: 'Pin vCPU 2' }).waitFor();
        assert.deepEqual(await violations(page), []);
        await picture(page, `pin-${name}`);
        await page.context().close();
        await list.context().close();
    });
}

test('is in German if Cockpit is', async () => {
    const options = { extraHTTPHeaders: { 'Accept-Language': 'de' }, locale: 'de-DE' };
    const list = await open(browser, address, '', options);
    await list.getByRole('heading', { name: 'Virtuelle CPUs der Maschinen' }).waitFor();
    await list.getByRole('link', { name: 'web' }).click();
    await list.getByRole('heading', { name: 'Anzahl der vCPUs' }).waitFor();
    assert.equal(await list.evaluate(() => document.documentElement.lang), 'de');
    assert.equal(await overflow(list), 0);
    await picture(list, 'machine-german', true);
});
