// Owns the private system bus of a world: a real dbus-daemon, and a real polkitd with the policies of vcpud.
import fs from 'node:fs';
import path from 'node:path';

import { inside } from './namespace';
import type { Bind } from './namespace';
import { Process, run } from './processes';

export const repository = path.resolve(import.meta.dirname, '../../../..');

/** As Debian's policy of the system bus, without what starts services. */
const configuration = (directory: string) => `<!DOCTYPE busconfig PUBLIC
    "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path=${directory}/bus</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
  </policy>
  <policy user="polkitd">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
  </policy>
  <include>${repository}/dbus/org.vcpud1.conf</include>
  <include>${repository}/dbus/org.vcpud1.Autoscale.conf</include>
</busconfig>
`;

export class Bus {
    private constructor(readonly daemon: Process, readonly address: string) {}

    static async start(directory: string): Promise<Bus> {
        const file = path.join(directory, 'bus.conf');
        fs.writeFileSync(file, configuration(directory));
        const daemon = new Process('dbus-daemon', 'dbus-daemon', [`--config-file=${file}`, '--nofork', '--nopidfile', '--print-address']);
        const address = await daemon.line(/^unix:path=/);
        return new Bus(daemon, address);
    }

    get env(): NodeJS.ProcessEnv {
        return { ...process.env, DBUS_SYSTEM_BUS_ADDRESS: this.address };
    }

    /** Waits until a name on the bus has an owner. */
    async owned(name: string): Promise<void> {
        await run('gdbus', ['wait', '--system', '--timeout=30', name], { env: this.env });
    }
}

/** Starts polkitd with rules in JavaScript. */
export async function startPolkit(bus: Bus, directory: string, rules: string): Promise<Process> {
    const actions = path.join(directory, 'actions');
    const ruleFiles = path.join(directory, 'rules');
    fs.cpSync('/usr/share/polkit-1/actions', actions, { recursive: true });
    for (const file of ['org.vcpud1.policy', 'org.vcpud1.Autoscale.policy']) {
        fs.copyFileSync(path.join(repository, 'polkit', file), path.join(actions, file));
    }
    fs.mkdirSync(ruleFiles);
    fs.writeFileSync(path.join(ruleFiles, '10-world.rules'), rules);
    const polkitd = ['/usr/lib/polkit-1/polkitd', '/usr/libexec/polkitd'].find(file => fs.existsSync(file));
    if (!polkitd) throw new Error('polkitd is not installed; run tests/setup');
    const binds: Bind[] = [[actions, '/usr/share/polkit-1/actions'], [ruleFiles, '/etc/polkit-1/rules.d']];
    const polkit = new Process('polkitd', ...inside(binds, polkitd, '--no-debug'), { env: bus.env });
    await bus.owned('org.freedesktop.PolicyKit1');
    return polkit;
}
