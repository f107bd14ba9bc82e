// Owns the tests with many machines, in the shell of Cockpit: 200 real QEMUs, and what the page costs while it is hidden.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, FrameLocator, Page } from 'playwright-core';

import { LIMIT } from '../world/processes';
import { ROOT, World } from '../world/world';
import { picture, startBrowser } from './session';

const MACHINES = 200;

/** A line of dbus-monitor about a call of the page that only reads. vcpuctl calls the name of the service. */
const READS = /destination=:.*member=(GetStatistics|ListVcpus|Plan|CanSetVcpus|CanTune|GetTuning|Explain)$/;

let world: World;
let browser: Browser;
let page: Page;
let frame: FrameLocator;

before(async () => {
    world = await World.start();
    await world.startService();
    browser = await startBrowser();
    const address = await world.startCockpit(ROOT);
    page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
    page.setDefaultTimeout(LIMIT);
    await page.goto(`${address}/vcpud`);
    frame = page.frameLocator('iframe[name="cockpit1:localhost/vcpud"]');
    await frame.getByRole('heading', { name: 'No machines' }).waitFor();
});

after(async () => {
    await browser?.close();
    await world?.stop();
});

test('lists 200 machines while they start', async () => {
    const names = Array.from({ length: MACHINES }, (_value, index) => `vm${index}`);
    // As many at a time as the host has CPUs to start them.
    while (names.length > 0) {
        await Promise.all(names.splice(0, 8).map(name => world.startGuest(name, { linux: false, max: 8 })));
    }
    await frame.getByText('200 machines').waitFor();
    assert.equal(await frame.getByRole('grid', { name: 'Machines' }).locator('tbody tr').count(), MACHINES);
    await picture(page, 'shell');
});

test('answers the user with 200 machines', async () => {
    await frame.getByRole('textbox', { name: 'Filter by name' }).fill('vm142');
    await frame.getByText('1 machine', { exact: true }).waitFor();
    await frame.getByRole('link', { name: 'vm142' }).click();
    await frame.getByRole('heading', { name: 'vm142' }).waitFor();
});

test('reads only while the page is visible', async () => {
    const monitor = await world.monitor("path_namespace='/org/vcpud1'");
    await monitor.line(/GetStatistics/);
    await world.startAutoscaler();
    await frame.getByText('It is off for this machine.').waitFor();
    // Another page of Cockpit hides the frame.
    await page.getByRole('link', { name: 'Services' }).click();
    await page.locator('iframe[name="cockpit1:localhost/system/services"]').waitFor();
    await page.waitForFunction(() => {
        const own = document.querySelector<HTMLIFrameElement>('iframe[name="cockpit1:localhost/vcpud"]');
        return (own?.contentWindow as typeof window & { cockpit: typeof cockpit }).cockpit.hidden;
    });
    const present = frame.locator('dl div', { has: frame.getByText('Present', { exact: true }) }).locator('dd');
    const set = async (count: number) => {
        await world.setVcpus('vm142', count);
        await present.filter({ hasText: String(count) }).waitFor({ state: 'attached' });
    };
    // The monitor has printed earlier reads then. Later changes show that time has passed without a read.
    await set(2);
    await monitor.line(/member=SetVcpus$/);
    const from = monitor.lines.length;
    await world.observe('vm142', 3);
    await monitor.line(/member=Decided/, from);
    for (const count of [3, 4, 5]) await set(count);
    const reads = monitor.lines.slice(from).filter(line => READS.test(line));
    assert.deepEqual(reads, []);
    await page.getByRole('link', { name: 'Virtual CPUs' }).click();
    await frame.locator('table[aria-label="vCPUs"] tbody tr').nth(4).waitFor();
    await monitor.line(/GetStatistics/, monitor.lines.length);
});
