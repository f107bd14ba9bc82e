// Owns the tests of what the page shows when the service or a machine comes and goes.
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';

import { ROOT, World } from '../world/world';
import { open, startBrowser } from './session';

let world: World;
let browser: Browser;
let page: Page;

before(async () => {
    [world, browser] = await Promise.all([World.start(), startBrowser()]);
    page = await open(browser, await world.startCockpit(ROOT));
});

after(async () => {
    await browser?.close();
    await world?.stop();
});

test('says that the service is not available, and connects when it starts', async () => {
    await page.getByRole('heading', { name: 'vcpud is not available' }).waitFor();
    await page.getByRole('button', { name: 'Try again' }).click();
    await page.getByRole('heading', { name: 'vcpud is not available' }).waitFor();
    await world.startService();
    await page.getByRole('heading', { name: 'No machines' }).waitFor();
});

test('lists a machine when it starts', async () => {
    await world.startGuest('web', { linux: false });
    await page.getByRole('link', { name: 'web' }).click();
    await page.getByRole('heading', { name: 'web' }).waitFor();
    await page.getByText('Not started yet').waitFor();
});

test('says that the autoscaler cannot be started', async () => {
    await page.getByRole('button', { name: 'Turn on' }).click();
    await page.getByText('Automatic scaling stays off').waitFor();
    await page.getByText('The service is not installed, or it cannot start.').waitFor();
});

test('keeps the page while the service restarts, and follows again', async () => {
    await world.stopService();
    await page.getByText('vcpud does not run').waitFor();
    await page.getByRole('heading', { name: 'web' }).waitFor();
    await world.startService();
    await page.getByText('vcpud does not run').waitFor({ state: 'detached' });
    await world.setVcpus('web', 3);
    await page.getByRole('grid', { name: 'vCPUs' }).locator('tbody tr').nth(2).waitFor();
});

test('says that the service cannot be started, and connects when it starts later', async () => {
    await world.stopService();
    // The private bus starts no services.
    await page.getByRole('button', { name: 'Start the service' }).click();
    await page.getByRole('heading', { name: 'vcpud is not available' }).waitFor();
    await world.startService();
    await page.getByRole('heading', { name: 'web' }).waitFor();
});

test('reports a machine without a connection, and its return', async () => {
    const guest = world.guests.get('web');
    guest?.process.signal('SIGSTOP');
    // vcpud notices a QEMU that does not answer when it is asked something.
    void world.setVcpus('web', 4).catch(() => undefined);
    await page.getByText('vcpud has no connection to QEMU').waitFor();
    guest?.process.signal('SIGCONT');
    await page.getByText('vcpud has no connection to QEMU').waitFor({ state: 'detached' });
});
