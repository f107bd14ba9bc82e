// Owns the tests of what the page shows when the service or a machine comes and goes.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';

import { ROOT, World } from '../world/world';
import { open, picture, startBrowser, violations } from './session';

let world: World;
let browser: Browser;
let page: Page;
let address: string;

before(async () => {
    [world, browser] = await Promise.all([World.start(), startBrowser()]);
    address = await world.startCockpit(ROOT);
    page = await open(browser, address);
});

/** Checks that the page offers no change while it only has the last known state of a machine. */
async function withoutControls(state: string): Promise<void> {
    await page.getByText(`last known: ${state}`).waitFor();
    assert.ok(await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).isDisabled());
    assert.equal(await page.getByRole('button', { name: 'Change the host CPUs' }).getAttribute('aria-disabled'), 'true');
    assert.equal(await page.getByRole('button', { name: /^Set to/ }).getAttribute('aria-disabled'), 'true');
}

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

test('says that a service without machines is not running', async () => {
    await world.stopService();
    await page.getByText('vcpud is not running').waitFor();
    await page.getByText('vcpud had no machines when it ended.').waitFor();
    await world.startService();
    await page.getByText('vcpud is not running').waitFor({ state: 'detached' });
    await page.getByRole('heading', { name: 'No machines' }).waitFor();
});

test('lists a machine when it starts', async () => {
    await world.startGuest('web', { linux: false });
    await page.getByRole('link', { name: 'web' }).click();
    await page.getByRole('heading', { name: 'web' }).waitFor();
    await page.getByText('Not started yet').waitFor();
});

test('shows a machine whose QEMU has not answered yet', async () => {
    // A client of a socket waits for the answer of a program that only listens.
    const qemu = net.createServer().listen(path.join(world.sockets, 'late.sock'));
    const late = await open(browser, address);
    await late.getByRole('row', { name: /late.*Disconnected/ }).waitFor();
    await late.getByRole('link', { name: 'late' }).click();
    await late.getByText('QEMU has not answered yet').waitFor();
    await late.getByRole('heading', { name: 'Details' }).waitFor();
    assert.equal(await late.getByRole('heading', { name: 'Number of vCPUs' }).count(), 0);
    assert.deepEqual(await violations(late), []);
    await picture(late, 'no-answer');
    qemu.close();
    await late.getByText('Machine late does not run').waitFor();
    await late.context().close();
});

test('says that the autoscaler cannot be started', async () => {
    await page.getByRole('button', { name: 'Turn on' }).click();
    await page.getByText('The request to turn on automatic scaling failed').waitFor();
    await page.getByText('The service is not installed, or it cannot start.').waitFor();
});

test('keeps the page while the service restarts, and follows again', async () => {
    await world.stopService();
    await page.getByText('vcpud is not running').waitFor();
    await page.getByRole('heading', { name: 'web' }).waitFor();
    await withoutControls('Not started yet');
    await world.startService();
    await page.getByText('vcpud is not running').waitFor({ state: 'detached' });
    // QEMU has answered to the new instance.
    await page.getByText('Not started yet', { exact: true }).waitFor();
    await world.setVcpus('web', 3);
    await page.getByRole('grid', { name: 'vCPUs' }).locator('tbody tr').nth(2).waitFor();
});

test('does not start the service with its questions, which an administrator can have stopped', async () => {
    const monitor = await world.monitor("type='method_call',interface='org.vcpud1.Machine',member='ListVcpus'");
    const asked = await monitor.line(/member=ListVcpus/);
    // The bus starts a service for its name, and not for the number of its connection.
    assert.match(asked, /destination=:\d/);
});

test('says that the service does not answer, and goes on when it does', async () => {
    const late = await open(browser, address, 'machine/web');
    await late.getByRole('heading', { name: 'web' }).waitFor();
    await page.getByRole('button', { name: 'Change the host CPUs' }).click();
    world.signalService('SIGSTOP');
    const dialog = page.getByRole('dialog');
    await dialog.getByText('vcpud does not answer').waitFor();
    assert.equal(await dialog.getByRole('button', { name: 'Save' }).getAttribute('aria-disabled'), 'true');
    await dialog.getByRole('button', { name: 'Cancel' }).click();
    await withoutControls('Not started yet');
    await picture(page, 'silent');
    await late.reload();
    await late.getByText('vcpud does not answer').waitFor();
    world.signalService('SIGCONT');
    for (const one of [page, late]) {
        await one.getByText('vcpud does not answer').waitFor({ state: 'detached' });
        await one.getByText('Not started yet', { exact: true }).waitFor();
    }
    await late.context().close();
});

test('does not lose the result of a call that takes long', async () => {
    await page.getByRole('button', { name: 'Change the host CPUs' }).click();
    const dialog = page.getByRole('dialog');
    await dialog.getByRole('textbox').fill('0');
    world.signalService('SIGSTOP');
    await dialog.getByRole('textbox').press('Enter');
    await page.keyboard.press('Escape');
    await dialog.getByText('vcpud does not answer').waitFor();
    world.signalService('SIGCONT');
    await dialog.waitFor({ state: 'detached' });
    await page.getByText('Not started yet', { exact: true }).waitFor();
});

test('says that a change was interrupted, and what the machine has', async () => {
    await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('5');
    await page.getByText('Adds vCPUs 3-4.').waitFor();
    world.signalService('SIGSTOP');
    await page.getByRole('button', { name: 'Set to 5 vCPUs' }).click();
    await page.getByText('Added', { exact: true }).waitFor();
    await world.stopService('SIGKILL');
    await world.startService();
    await page.getByText('The change to 5 vCPUs was interrupted').waitFor();
    await page.getByText('The machine has 3 vCPUs now.').waitFor();
    // The plan moves the button.
    await page.getByText('Adds vCPUs 3-4.').waitFor();
    await page.getByRole('button', { name: 'Cancel' }).click();
    await page.getByText('The change to 5 vCPUs was interrupted').waitFor({ state: 'detached' });
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
    // The call below asks QEMU only if vcpud is connected to it.
    await page.getByText('Not started yet', { exact: true }).waitFor();
    guest?.process.signal('SIGSTOP');
    // vcpud notices a QEMU that does not answer when it is asked something.
    void world.setVcpus('web', 4).catch(() => undefined);
    await page.getByText('vcpud has no connection to QEMU').waitFor();
    guest?.process.signal('SIGCONT');
    await page.getByText('vcpud has no connection to QEMU').waitFor({ state: 'detached' });
});

test('keeps the report of a change while QEMU does not answer to a new instance of the service', async () => {
    const guest = world.guests.get('web');
    await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('7');
    await page.getByText(/^Adds vCPUs \d-6\.$/).waitFor();
    guest?.process.signal('SIGSTOP');
    await page.getByRole('button', { name: 'Set to 7 vCPUs' }).click();
    await page.getByText('Added', { exact: true }).waitFor();
    await world.stopService('SIGKILL');
    await world.startService();
    await page.getByText('QEMU has not answered yet').waitFor();
    await page.getByText('The change to 7 vCPUs was interrupted').waitFor();
    assert.equal(await page.getByText(/^The machine has \d vCPUs now\.$/).count(), 0);
    guest?.process.signal('SIGCONT');
    await page.getByText(/^The machine has \d vCPUs now\.$/).waitFor();
    await page.getByText('The change to 7 vCPUs was interrupted').waitFor();
});

test('shows nothing of a machine that ended while the service did not run', async () => {
    const count = page.getByRole('spinbutton', { name: 'Number of vCPUs' });
    await count.fill('9');
    await page.getByText(/^Adds vCPUs \d-8\.$/).waitFor();
    await page.getByRole('checkbox', { name: 'Select vCPU 0' }).check();
    await world.stopService();
    await world.guests.get('web')?.stop();
    fs.rmSync(path.join(world.sockets, 'web.sock'));
    await world.startGuest('web', { linux: false });
    await world.startService();
    await page.getByRole('button', { name: 'Set to 1 vCPU', exact: true }).waitFor();
    assert.equal(await count.inputValue(), '1');
    assert.equal(await page.getByRole('checkbox', { name: 'Select vCPU 0' }).isChecked(), false);
});
