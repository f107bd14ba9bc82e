// Owns the tests of changes: a real Cockpit, a real vcpud and real Linux guests that get and release vCPUs.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';

import { commandLines, until } from '../world/processes';
import { ROOT, World } from '../world/world';
import type { Guest } from '../world/guest';
import { open, picture, startBrowser } from './session';

let world: World;
let browser: Browser;
let guest: Guest;
let page: Page;

before(async () => {
    world = await World.start();
    await world.startJournal();
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

/** Waits until the title of a card or the begin of a view has the focus. */
const focused = (name: string) => page.waitForFunction(
    text => document.activeElement !== document.body && document.activeElement?.textContent?.startsWith(text), name);

test('adds vCPUs, and shows that the guest starts them', async () => {
    // With the keyboard only.
    await page.getByRole('slider', { name: 'Number of vCPUs' }).focus();
    await page.keyboard.press('End');
    await page.getByText('Adds vCPUs 2-15.').waitFor();
    await page.keyboard.press('Home');
    await page.getByText('Removes vCPU 1. The guest can refuse the removal.').waitFor();
    await page.keyboard.press('PageUp');
    await page.keyboard.press('ArrowUp');
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowDown');
    await page.getByText('Adds vCPUs 2-3.').waitFor();
    // The use is known after two samples.
    await page.getByRole('row', { name: /Started \d+ %/ }).first().waitFor();
    await picture(page, 'plan');
    await page.getByRole('button', { name: 'Set to 4 vCPUs' }).press('Enter');
    await page.getByText('The machine has 4 vCPUs').waitFor();
    assert.ok(await page.getByRole('button', { name: 'Set to 4 vCPUs' }).evaluate(button => button === document.activeElement));
    await rows().nth(3).getByText('Started').waitFor();
    await guest.online('0-3');
    assert.equal(await rows().count(), 4);
});

test('shows the journal of the machine', async () => {
    const entries = page.getByRole('list', { name: 'Entries' });
    await entries.getByText('vCPU 3 added').waitFor();
    await entries.getByText(/Request of root \(uid 0\): add \(.*vcpus 4/).waitFor();
    await entries.getByText('vCPU 3 started by the guest').waitFor();
});

test('removes vCPUs', async () => {
    await count().fill('3');
    await page.getByText('Removes vCPU 3. The guest can refuse the removal.').waitFor();
    await page.getByRole('button', { name: 'Set to 3 vCPUs' }).click();
    await page.getByText('The machine has 3 vCPUs').waitFor();
    await guest.online('0-2');
    await rows().nth(3).waitFor({ state: 'detached' });
    assert.equal(await rows().count(), 3);
});

test('reports a refusal of the guest with its reason and advice', async () => {
    await guest.order('refuse 2');
    await count().fill('2');
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).click();
    await page.getByText('vCPU 2 was not released').waitFor();
    await page.getByRole('list', { name: 'Refusals' }).getByText(/vCPU 2: The guest (is busy with|uses) the CPU\./).waitFor();
    await picture(page, 'refusal');
    await guest.order('unrefuse 2');
});

test('shows a pending removal and its end, and offers the possible numbers until then', async () => {
    await guest.execute('stop');
    await page.getByText('Paused').waitFor();
    await count().fill('1');
    await page.getByRole('button', { name: 'Set to 1 vCPU', exact: true }).click();
    await page.getByText('The removal of vCPUs 1-2 is pending').waitFor();
    await page.getByText('The guest does not run, so that it cannot answer.').waitFor();
    await rows().getByText('Removal pending').nth(1).waitFor();
    await picture(page, 'pending');
    // The slots of pending removals are not free.
    await count().fill('16');
    await page.getByText('The machine cannot have 16 vCPUs now').waitFor();
    await page.getByRole('button', { name: /^Select \d+ vCPUs$/ }).click();
    await page.getByText('Adds vCPUs 3-').waitFor();
    await page.getByRole('button', { name: 'Cancel' }).click();
    await guest.execute('cont');
    await page.getByText('The removal of vCPUs 1-2 is pending').waitFor({ state: 'detached' });
    await rows().nth(1).waitFor({ state: 'detached' });
});

test('plans changes of a paused machine', async () => {
    await guest.execute('stop');
    await page.getByText('Paused').waitFor();
    await count().fill('3');
    await page.getByText('Adds vCPUs 1-2.').waitFor();
    await page.getByRole('button', { name: 'Cancel' }).click();
    await guest.execute('cont');
    await page.getByText('Running', { exact: true }).waitFor();
    await page.getByRole('button', { name: 'Set to 1 vCPU', exact: true }).waitFor();
});

test('follows changes of other clients, and forgets a success that is over', async () => {
    await count().fill('2');
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).click();
    await page.getByText('The machine has 2 vCPUs').waitFor();
    await world.setVcpus('web', 1);
    await page.getByText('The machine has 2 vCPUs').waitFor({ state: 'detached' });
    await world.setVcpus('web', 2);
    await rows().nth(1).waitFor();
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).waitFor();
    assert.equal(await page.getByText('The machine has 2 vCPUs').count(), 0);
});

test('forgets a removal that ended late, and offers no change that nobody selected', async () => {
    await guest.execute('stop');
    await page.getByText('Paused').waitFor();
    await count().fill('1');
    await page.getByRole('button', { name: 'Set to 1 vCPU', exact: true }).click();
    await page.getByText('The removal of vCPU 1 is pending').waitFor();
    await page.getByRole('button', { name: 'Cancel' }).waitFor({ state: 'detached' });
    await guest.execute('cont');
    await page.getByText(/The machine has 1 vCPU$/).waitFor();
    await world.setVcpus('web', 2);
    await page.getByText(/The machine has 1 vCPU$/).waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).waitFor();
    assert.equal(await count().inputValue(), '2');
});

test('keeps a number that the user selects during a change', async () => {
    await count().fill('3');
    await page.getByText('Adds vCPU 2.').waitFor();
    guest.process.signal('SIGSTOP');
    await page.getByRole('button', { name: 'Set to 3 vCPUs' }).click();
    await page.getByText('Added', { exact: true }).waitFor();
    await count().fill('4');
    guest.process.signal('SIGCONT');
    await page.getByText('Adds vCPU 3.').waitFor();
    assert.equal(await count().inputValue(), '4');
    // The guest has started the vCPU. The end of the progress moves the button.
    await page.getByText('The machine has 3 vCPUs').waitFor();
    await page.getByRole('button', { name: 'Cancel' }).click();
    await world.setVcpus('web', 2);
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).waitFor();
});

test('keeps the text that the user types, and takes no impossible number', async () => {
    const button = page.getByRole('button', { name: /^Set to / });
    await count().press('Control+A');
    await count().pressSequentially('99999');
    await page.getByText('Enter a whole number from 1 to 16.').waitFor();
    assert.equal(await count().inputValue(), '99999');
    assert.equal(await button.getAttribute('aria-disabled'), 'true');
    await count().press('Control+A');
    await count().press('Delete');
    await count().blur();
    assert.equal(await count().inputValue(), '');
    await page.getByRole('button', { name: 'Cancel' }).click();
    assert.equal(await count().inputValue(), '2');
    const maximum = page.getByRole('spinbutton', { name: 'Maximum' });
    await maximum.press('Control+A');
    await maximum.pressSequentially('-5');
    assert.equal(await maximum.inputValue(), '-5');
    await page.getByText('Enter a whole number from 1 to 16.').waitFor();
    await page.getByRole('spinbutton', { name: 'Minimum' }).fill('9');
    await maximum.fill('6');
    await page.getByText('Enter a maximum that is not below the minimum').waitFor();
});

test('keeps the focus in a card, and gives it to the title of a view', async () => {
    await count().fill('3');
    await page.getByRole('button', { name: 'Cancel' }).press('Enter');
    await focused('Number of vCPUs');
    await page.getByRole('link', { name: 'Machines' }).press('Enter');
    await focused('Virtual CPUs of machines');
    // Nothing reads the journal for a page that is not shown.
    await until('the end of journalctl', () => !commandLines().some(line => line.includes('--follow') && line.includes('VM_NAME=web ')));
    await page.getByRole('link', { name: 'web' }).press('Enter');
    await focused('web');
    await page.getByRole('button', { name: 'Change the host CPUs', disabled: false }).press('Enter');
    const dialog = page.getByRole('dialog', { name: 'Host CPUs of vCPUs without a pin' });
    const field = dialog.getByRole('textbox', { name: 'Host CPUs' });
    // No host CPUs are set, although the vCPUs have some.
    assert.equal(await field.inputValue(), '');
    await field.press('3');
    await dialog.getByRole('button', { name: 'Cancel' }).press('Enter');
    await dialog.waitFor({ state: 'detached' });
});

test('pins vCPUs, and shows the host CPUs in force', async () => {
    await page.getByRole('checkbox', { name: 'Select vCPU 1' }).check();
    await page.getByRole('button', { name: 'Pin selected' }).click();
    const dialog = page.getByRole('dialog', { name: 'Pin vCPU 1' });
    const field = dialog.getByRole('textbox', { name: 'Host CPUs' });
    await field.fill('zero');
    await dialog.getByText('Enter host CPUs as numbers and ranges, such as 0-3,8.').waitFor();
    await field.fill('4095');
    await dialog.getByRole('button', { name: 'Save' }).click();
    await dialog.getByText('Select host CPUs that exist and are online.').waitFor();
    await field.fill(' 0 ');
    await field.press('Enter');
    await dialog.waitFor({ state: 'detached' });
    await rows().nth(1).locator('[data-label="Affinity"]').getByText('0', { exact: true }).waitFor();
    await page.getByText('vCPU 1: host CPUs 0').waitFor();
});

test('pins the vCPUs that were selected when the dialog was opened', async () => {
    await page.getByRole('button', { name: 'Pin selected' }).click();
    const dialog = page.getByRole('dialog', { name: 'Pin vCPU 1' });
    await dialog.getByRole('textbox', { name: 'Host CPUs' }).fill('0');
    await world.setVcpus('web', 1);
    await rows().nth(1).waitFor({ state: 'detached' });
    const monitor = await world.monitor("type='method_call',member='PinVcpus'");
    await dialog.getByRole('button', { name: 'Save' }).click();
    // A call without vCPUs would set the default of the machine.
    await monitor.line(/uint32 1$/);
    await dialog.waitFor({ state: 'detached' });
    await world.setVcpus('web', 2);
    await rows().nth(1).waitFor();
});

test('offers no limit of the CPU time without control groups', async () => {
    // Without systemd, the machine has no control groups of its own.
    await page.getByText('none; limits of the CPU time are not possible').waitFor();
    await page.getByRole('button', { name: 'Change the host CPUs' }).waitFor();
    assert.equal(await page.getByRole('button', { name: 'Change the limit of the CPU time' }).count(), 0);
});

test('turns automatic scaling on and off, and explains it', async () => {
    await page.getByText('The service is not running, so that it changes nothing.').waitFor();
    const autoscaler = await world.startAutoscaler();
    await page.getByText('It is off for this machine.').waitFor();
    await page.getByRole('spinbutton', { name: 'Minimum' }).fill('2');
    await page.getByRole('spinbutton', { name: 'Maximum' }).fill('4');
    await page.getByRole('checkbox', { name: 'Only observe' }).check();
    await page.getByRole('button', { name: 'Turn on' }).dblclick();
    await page.getByText('The limits are 2 and 4 vCPUs.').waitFor();
    await page.getByText('The service decides only. It makes no changes.').waitFor();
    // The explanation has the numbers that led to it.
    await page.getByText(/complete data is needed for 45 s/).waitFor();
    await page.locator('dl').filter({ hasText: 'Throttled' }).getByText('0.0').last().waitFor();
    await picture(page, 'machine', true);
    autoscaler.signal('SIGSTOP');
    await page.getByText('vcpud-autoscale does not answer').waitFor();
    autoscaler.signal('SIGCONT');
    await page.getByRole('button', { name: 'Turn off' }).click();
    await page.getByText('It is off for this machine.').waitFor();
    // The limits are there for the next time.
    assert.equal(await page.getByRole('spinbutton', { name: 'Minimum' }).inputValue(), '2');
});

test('says that a machine has ended', async () => {
    await page.getByRole('button', { name: 'Change the host CPUs' }).press('Enter');
    await page.getByRole('dialog').waitFor();
    await guest.stop();
    await page.getByText('Machine web does not run').waitFor();
    await focused('Machine web does not run');
    await page.getByRole('link', { name: 'All machines' }).click();
    await page.getByRole('heading', { name: 'No machines' }).waitFor();
    await picture(page, 'empty');
});

test('changes whole slots', async () => {
    await world.startGuest('power', { linux: false, pseries: true });
    await page.getByRole('link', { name: 'power' }).click();
    await page.getByText('vCPUs change in groups of 4.').waitFor();
    await page.getByRole('button', { name: 'Increase: Number of vCPUs' }).click();
    await page.getByText('Adds vCPUs 4-7.').waitFor();
    await count().press('Control+A');
    await count().pressSequentially('11');
    await page.getByText('Enter a multiple of 4 from 4 to 16.').waitFor();
    await page.getByRole('button', { name: 'Increase: Number of vCPUs' }).click();
    await page.getByText('Adds vCPUs 4-11.').waitFor();
    await page.getByRole('button', { name: 'Set to 12 vCPUs' }).click();
    await rows().nth(11).waitFor();
});
