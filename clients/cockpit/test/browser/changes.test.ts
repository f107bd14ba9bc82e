// Owns the tests of changes: a real Cockpit, a real vcpud and real Linux guests that get and release vCPUs.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';

import { ROOT, World } from '../world/world';
import type { Guest } from '../world/guest';
import { open, picture, startBrowser } from './session';

let world: World;
let browser: Browser;
let guest: Guest;
let page: Page;

before(async () => {
    world = await World.start();
    await world.startService();
    [guest, browser] = await Promise.all([world.startGuest('web', { vcpus: 2 }), startBrowser()]);
    page = await open(browser, await world.startCockpit(ROOT), 'machine/web');
});

after(async () => {
    await browser?.close();
    await world?.stop();
});

const count = () => page.getByRole('spinbutton', { name: 'Number of vCPUs' });
const rows = () => page.getByRole('grid', { name: 'vCPUs' }).locator('tbody tr');

test('adds vCPUs, and shows that the guest starts them', async () => {
    // With the keyboard only.
    await page.getByRole('slider', { name: 'Number of vCPUs' }).focus();
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    await page.getByText('Adds vCPUs 2-3.').waitFor();
    await picture(page, 'plan');
    await page.getByRole('button', { name: 'Set to 4 vCPUs' }).press('Enter');
    await page.getByText('The machine has 4 vCPUs').waitFor();
    await rows().nth(3).getByText('Started').waitFor();
    await guest.online('0-3');
    assert.equal(await rows().count(), 4);
});

test('removes vCPUs', async () => {
    await count().fill('3');
    await page.getByText('Removes vCPU 3. The guest can refuse the removal.').waitFor();
    await page.getByRole('button', { name: 'Set to 3 vCPUs' }).click();
    await page.getByText('The machine has 3 vCPUs').waitFor();
    await guest.online('0-2');
    await rows().nth(2).waitFor();
    assert.equal(await rows().count(), 3);
});

test('reports a refusal of the guest with its reason and advice', async () => {
    await guest.order('refuse 2');
    await count().fill('2');
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).click();
    await page.getByText('The guest refused to release vCPU 2').waitFor();
    await page.getByRole('list', { name: 'Refusals' }).getByText(/vCPU 2: .*(busy|in use|uses)/i).waitFor();
    await picture(page, 'refusal');
    await guest.order('unrefuse 2');
});
