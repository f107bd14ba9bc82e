// Owns the tests of a user without the rights of root: what polkit authorizes, what it denies, and administrative access.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import type { Browser, Page } from 'playwright-core';

import { NOBODY, World } from '../world/world';
import { open, picture, startBrowser, violations } from './session';

const rules = `
polkit.addRule(function(action, subject) {
    if (action.id !== "org.vcpud1.set-vcpus" || subject.user !== "nobody") return polkit.Result.NOT_HANDLED;
    if (action.lookup("machine") === "db") return polkit.Result.YES;
    return action.lookup("machine") === "mail" ? polkit.Result.NO : polkit.Result.NOT_HANDLED;
});`;

let world: World;
let browser: Browser;
let address: string;

before(async () => {
    world = await World.start(rules);
    await world.startService();
    const paused = { linux: false };
    [browser] = await Promise.all([startBrowser(),
        ...['web', 'db', 'mail'].map(name => world.startGuest(name, paused))]);
    address = await world.startCockpit(NOBODY);
});

after(async () => {
    await browser?.close();
    await world?.stop();
});

/** Opens a machine, and selects two vCPUs. */
async function select(machine: string): Promise<Page> {
    const page = await open(browser, address, `machine/${machine}`);
    await page.getByRole('spinbutton', { name: 'Number of vCPUs' }).fill('2');
    await page.getByText('Adds vCPU 1.').waitFor();
    return page;
}

test('a user whom polkit authorizes is the requester', async () => {
    const page = await select('db');
    await page.getByRole('button', { name: 'Set to 2 vCPUs', exact: true }).click();
    // The guest is paused, so that it cannot start the vCPU.
    await page.getByText('The guest has not started vCPU 1 yet').waitFor();
    assert.match(world.log(), /db: vCPU 1 added.* request_uid=65534/);
    await page.context().close();
});

test('says before a change that polkit denies it', async () => {
    const page = await select('mail');
    await page.getByText('Your account is not authorized for this change').waitFor();
    await page.context().close();
});

test('without administrative access, says how to get it', async () => {
    const page = await select('web');
    await page.getByText('This change needs administrative access').waitFor();
    assert.deepEqual(await violations(page), []);
    await page.getByRole('button', { name: 'Set to 2 vCPUs with administrative access' }).click();
    await page.getByText('Turn on administrative access at the top of Cockpit, and try again.').waitFor();
    await picture(page, 'denied');
    await page.context().close();
});

test('without administrative access, says why the journal cannot be read', async () => {
    const page = await open(browser, address, 'machine/web');
    await page.getByText('The journal has no entries about this machine, or your account cannot read it.').waitFor();
    await page.getByRole('button', { name: 'Read it with administrative access' }).click();
    await page.getByText('The journal cannot be read').waitFor();
    await page.getByText('Turn on administrative access at the top of Cockpit, and try again.').waitFor();
    await page.context().close();
});

test('says that a pin and automatic scaling need administrative access, and uses it', async () => {
    const page = await open(browser, address, 'machine/web');
    await page.getByRole('checkbox', { name: 'Select vCPU 0' }).check();
    await page.getByRole('button', { name: 'Pin selected' }).click();
    const dialog = page.getByRole('dialog', { name: 'Pin vCPU 0' });
    await dialog.getByRole('textbox', { name: 'Host CPUs' }).fill('0');
    const save = dialog.getByRole('button', { name: 'Save with administrative access' });
    await save.click();
    await dialog.getByText('The pin is not changed').waitFor();
    await dialog.getByText('Turn on administrative access at the top of Cockpit, and try again.').waitFor();
    await page.evaluate(async () => {
        // As the shell of Cockpit does at the button "Limited access".
        const bridge = cockpit.dbus(null, { bus: 'internal' as 'system' });
        await bridge.call('/superuser', 'cockpit.Superuser', 'Start', ['sudo'], { type: 's' });
    });
    await save.click();
    await dialog.waitFor({ state: 'detached' });
    await page.getByText('vCPU 0: host CPUs 0').waitFor();
    await world.startAutoscaler();
    await page.getByRole('button', { name: 'Turn on with administrative access' }).click();
    await page.getByRole('button', { name: 'Turn off with administrative access' }).waitFor();
    await page.context().close();
});
