// Owns the running host of the lab (tests/lab), as a test of the page sees it: commands and guests in it, and Cockpit in
// front of it. The web server is outside of the host, and the bridge is that of the host.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { repository } from '../world/bus';
import { startWebServer } from '../world/cockpit';
import { freePort, Process, run } from '../world/processes';

const shell = path.join(repository, 'tests/lab/sh');

export class Host {
    private readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'vcpud-lab.'));
    private readonly servers: Process[] = [];
    private readonly units = new Set<string>();

    /** Runs a command of bash as root, and returns what it prints. */
    async run(command: string): Promise<string> {
        return run(shell, [`set -e; ${command}`]);
    }

    /** Returns whether systemd has a unit as "active", "inactive" or other. */
    async stateOf(unit: string): Promise<string> {
        return this.run(`systemctl show --property=ActiveState --value ${unit}`);
    }

    /** Starts a program in a unit of its own, which ends with the test. */
    async startUnit(name: string, command: string): Promise<void> {
        this.units.add(name);
        await this.run(`systemd-run --quiet --collect --unit=${name} --property=Delegate=yes ${command}`);
    }

    async stopUnit(name: string): Promise<void> {
        await this.run(`systemctl stop ${name}`);
        this.units.delete(name);
    }

    /** Starts a QEMU with KVM and one vCPU in the unit guest-NAME. */
    async startGuest(name: string, max: number): Promise<void> {
        const kit = '/usr/local/share/guest';
        await this.startUnit(`guest-${name}`, `qemu-system-x86_64 -name guest=${name},debug-threads=on
            -machine q35,accel=kvm -cpu host -m 256 -smp 1,maxcpus=${max},sockets=${max}
            -display none -nodefaults -no-user-config -qmp unix:/run/vcpud/qmp/${name}.sock,server=on,wait=off -serial stdio
            -kernel ${kit}/vmlinux -initrd ${kit}/initrd -append "console=ttyS0 quiet panic=-1"`.replaceAll('\n', ' '));
    }

    /** Waits until Linux has booted in a guest. */
    async booted(name: string): Promise<void> {
        // Without --no-tail, journalctl begins with the last ten lines.
        const journal = `journalctl --follow --no-tail --quiet --output=cat --unit=guest-${name}`;
        const console = new Process(`the console of ${name}`, shell, [journal]);
        try {
            await console.line(/^ONLINE 0$/);
        } finally {
            await console.kill();
        }
    }

    /** Returns a file of the control group of a vCPU. */
    async groupFile(machine: string, vcpu: number, file: string): Promise<string> {
        return this.run(`cat /sys/fs/cgroup/system.slice/guest-${machine}.service/vcpud/vcpu${vcpu}/${file}`);
    }

    /** Starts Cockpit with a session of a user of the host, and returns its address. */
    async startCockpit(user: 'root' | 'alice' | 'adam'): Promise<string> {
        const port = await freePort();
        const home = fs.mkdtempSync(path.join(this.directory, `${user}.`));
        // A login, as that of Cockpit, except that it asks for no password. Commands in the host are of root.
        const login = user === 'root' ? '' : `su --login ${user} --command`;
        const bridge = `${shell} ${login} cockpit-bridge`;
        this.servers.push(await startWebServer(port, { bridge, home }));
        return `http://127.0.0.1:${port}`;
    }

    /** Ends everything that was started. */
    async stop(): Promise<void> {
        for (const server of this.servers) await server.kill();
        await this.run(`systemctl stop ${[...this.units].join(' ')} vcpud-autoscale vcpud`);
        fs.rmSync(this.directory, { recursive: true, force: true });
    }
}
