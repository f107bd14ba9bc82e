// Owns the tests of the page with the host of the lab: systemd, its journal, control groups, KVM, and a newer Cockpit.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';

import { open, picture, startBrowser, violations } from '../browser/session';
import { LIMIT } from '../world/processes';
import { Host } from './host';

const host = new Host();
/** The journal has the machines of other tests, and of earlier runs with the same host. */
const name = `web-${process.pid}`;
let browser: Browser;
let page: Page;

before(async () => {
    // No machine starts the service.
    await host.run('systemctl stop vcpud.path vcpud vcpud-autoscale');
    [browser] = await Promise.all([startBrowser(), host.startGuest(name, 4)]);
});

after(async () => {
    await browser?.close();
    await host.stop();
});

const rows = () => page.getByRole('grid', { name: 'vCPUs' }).locator('tbody tr');
const entries = () => page.getByRole('list', { name: 'Entries' });

/** A service owns its name before systemd knows that it is ready. */
const isStarted = /^(active|activating)$/;

/** Opens a dialog of the card "Placement", and returns it. */
async function dialogOf(button: string, name: string | RegExp) {
    await page.getByRole('button', { name: button }).click();
    return page.getByRole('dialog', { name });
}

test('starts the service when the page opens, and with a button after an administrator stopped it', async () => {
    assert.equal(await host.stateOf('vcpud.service'), 'inactive');
    page = await open(browser, await host.startCockpit('root'), `machine/${name}`);
    await page.getByRole('heading', { name, exact: true }).waitFor();
    assert.match(await host.stateOf('vcpud.service'), isStarted);
    await host.run('systemctl stop vcpud');
    await page.getByText('vcpud is not running').waitFor();
    await picture(page, 'lab-stopped');
    assert.equal(await host.stateOf('vcpud.service'), 'inactive');
    await page.getByRole('button', { name: 'Start the service' }).click();
    await page.getByText('vcpud is not running').waitFor({ state: 'detached' });
    assert.match(await host.stateOf('vcpud.service'), isStarted);
});

test('adds a vCPU, which the guest starts', async () => {
    await host.booted(name);
    await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('2');
    await page.getByText('Adds vCPU 1.').waitFor();
    await page.getByRole('button', { name: 'Set to 2 vCPUs' }).click();
    await page.getByText('The machine has 2 vCPUs').waitFor();
    await rows().nth(1).getByText('Started', { exact: true }).waitFor();
});

test('limits the CPU time in the control groups', async () => {
    const dialog = await dialogOf('Change the limit of the CPU time', 'Limit of the CPU time of each vCPU');
    await dialog.getByRole('checkbox', { name: 'Limit the CPU time' }).check();
    await dialog.getByRole('spinbutton', { name: 'Share of a host CPU' }).fill('50');
    await picture(page, 'lab-limit');
    await dialog.getByRole('button', { name: 'Save' }).click();
    await dialog.waitFor({ state: 'detached' });
    await page.getByText('50 % of a host CPU for each vCPU').waitFor();
    for (const vcpu of [0, 1]) assert.equal(await host.groupFile(name, vcpu, 'cpu.max'), '50000 100000');
});

test('marks the host CPUs that another program sets, until the service restores them', async () => {
    await page.getByRole('checkbox', { name: 'Select vCPU 1' }).check();
    await page.getByRole('button', { name: 'Pin selected' }).click();
    const dialog = page.getByRole('dialog', { name: 'Pin vCPU 1' });
    await dialog.getByRole('textbox', { name: 'Host CPUs' }).fill('0-1');
    await dialog.getByRole('button', { name: 'Save' }).click();
    await dialog.waitFor({ state: 'detached' });
    const affinity = rows().nth(1).locator('[data-label="Affinity"]');
    await affinity.getByText('0-1', { exact: true }).waitFor();

    // The service restores the pin every five seconds, so the other program insists.
    const thread = await host.groupFile(name, 1, 'cgroup.threads');
    await host.startUnit('affinity', `bash -c "while taskset --cpu-list --pid 0 ${thread}; do sleep 0.2; done"`);
    await affinity.getByText('wanted: 0-1').waitFor();
    await picture(page, 'lab-drift', true);
    await host.stopUnit('affinity');
    await affinity.getByText('wanted: 0-1').waitFor({ state: 'detached' });
    await entries().getByText(/was changed by another program/).waitFor();
});

test('starts automatic scaling, and shows its journal', async () => {
    assert.equal(await host.stateOf('vcpud-autoscale.service'), 'inactive');
    await page.getByRole('spinbutton', { name: 'Minimum' }).fill('3');
    await page.getByRole('button', { name: 'Turn on' }).click();
    await page.getByText('The limits are 3 and 4 vCPUs.').waitFor();
    assert.match(await host.stateOf('vcpud-autoscale.service'), isStarted);
    await entries().getByText('scaled, mode on').waitFor();
    await entries().getByText(/^sets 3 vCPUs instead of 2/).waitFor();
    await entries().getByText('vCPU 2 started by the guest').waitFor();
    await rows().nth(2).getByText('Started', { exact: true }).waitFor();
    assert.deepEqual(await violations(page), []);
    await picture(page, 'lab-machine', true);
    await page.getByRole('button', { name: 'Turn off' }).click();
    await page.getByText('It is off for this machine.').waitFor();
});

test('says what a user without rights cannot do', async () => {
    // The journal of the machine is there, as root has seen.
    await entries().getByText('vCPU 1 added').waitFor();
    await page.context().close();
    assert.doesNotMatch(await host.run(`runuser --user alice -- journalctl VM_NAME=${name} || true`), /vCPU/);
    page = await open(browser, await host.startCockpit('alice'), `machine/${name}`);
    await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('4');
    await page.getByText('Adds vCPU 3.').waitFor();
    await page.getByText('This change needs administrative access').waitFor();
    await page.getByRole('button', { name: 'Set to 4 vCPUs with administrative access' }).waitFor();
    await page.getByRole('button', { name: 'Read it with administrative access' }).waitFor();
    assert.equal(await entries().count(), 0);
    await picture(page, 'lab-alice', true);
    await page.context().close();
});

test('makes a change with the password of an administrator, in the shell of Cockpit', async () => {
    page = await browser.newPage();
    page.setDefaultTimeout(LIMIT);
    await page.goto(`${await host.startCockpit('adam')}/vcpud#/machine/${name}`);
    const frame = page.frameLocator('iframe[name="cockpit1:localhost/vcpud"]');
    await frame.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('4');
    await frame.getByText('Adds vCPU 3.').waitFor();
    await frame.getByText('This change needs administrative access').waitFor();
    await page.getByRole('button', { name: 'Limited access' }).click();
    const dialog = page.getByRole('dialog');
    await dialog.getByLabel('Password').fill('lab');
    await dialog.getByRole('button', { name: 'Authenticate' }).click();
    await dialog.waitFor({ state: 'detached' });
    await picture(page, 'lab-adam', true);
    await frame.getByRole('button', { name: 'Set to 4 vCPUs with administrative access' }).click();
    await frame.getByText('The machine has 4 vCPUs').waitFor();
    await page.close();
});
