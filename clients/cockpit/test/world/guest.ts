// Owns the virtual machines of a world: real QEMUs, with the Linux guest that tests/setup makes or with firmware only.
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';

import { repository } from './bus';
import { exists, Process, within } from './processes';

const kit = path.join(repository, 'target/guest');

export interface Boot {
    vcpus?: number;
    max?: number;
    /** Whether Linux is booted; else the guest is paused, and has firmware only. */
    linux?: boolean;
    /** Whether the machine is a pseries, whose slots have four vCPUs. It is paused. */
    pseries?: boolean;
}

export class Guest {
    private orders: net.Socket | undefined;

    private constructor(readonly process: Process, private readonly directory: string, private readonly ready: Promise<unknown>) {}

    /** Starts a QEMU whose QMP socket makes it a machine. */
    static start(name: string, sockets: string, directory: string, boot: Boot = {}): Guest {
        const own = fs.mkdtempSync(path.join(directory, `${name}.`));
        const { vcpus = 1, max = 16, linux = true, pseries = false } = boot;
        const qmp = path.join(sockets, `${name}.sock`);
        const hardware = pseries
            ? ['-machine', 'pseries', '-smp', `4,threads=4,maxcpus=${max}`, '-m', '256']
            : ['-machine', 'q35', '-cpu', 'qemu64', '-smp', `${vcpus},maxcpus=${max}`, '-m', linux ? '256' : '16'];
        const process = new Process(name, path.join(kit, pseries ? 'qemu-ppc64' : 'qemu'), [
            '-name', `${name},debug-threads=on`, '-accel', 'tcg,thread=multi', ...hardware,
            '-display', 'none', '-nodefaults', '-no-user-config', '-qmp', listen(qmp),
            ...(linux
                ? ['-kernel', path.join(kit, 'vmlinuz'), '-initrd', path.join(kit, 'initrd'), '-append', 'console=ttyS0 quiet panic=-1',
                    '-serial', 'stdio', '-serial', listen(path.join(own, 'orders')), '-qmp', listen(path.join(own, 'witness'))]
                : ['-S']),
        ]);
        return new Guest(process, own, linux ? process.line(/GUEST-READY/) : exists(qmp));
    }

    /** Waits until Linux has booted; without Linux, until the QMP socket exists. */
    async booted(): Promise<void> {
        await this.ready;
    }

    /** Gives the guest an order (see tests/guest-image/init), and waits until it is carried out. */
    async order(order: string): Promise<void> {
        if (!this.orders) {
            this.orders = net.connect(path.join(this.directory, 'orders'));
            // Bytes may be lost before the guest has opened its port.
            this.orders.write('\n\n\n\n\n\n\n\n');
        }
        const from = this.process.lines.length;
        this.orders.write(`${order}\n`);
        const line = await this.process.line(new RegExp(`^(DONE|FAILED) ${order}`), from);
        if (line.startsWith('FAILED')) throw new Error(`the guest cannot ${order}`);
    }

    /** Executes a QMP command without vcpud, on a second socket. */
    async execute(command: string): Promise<void> {
        const socket = net.connect(path.join(this.directory, 'witness'));
        const replies = createInterface(socket);
        for (const name of ['qmp_capabilities', command]) socket.write(`${JSON.stringify({ execute: name, id: name })}\n`);
        const executed = new Promise<void>((resolve, reject) => {
            replies.on('line', line => {
                const reply = JSON.parse(line) as { id?: string; error?: { desc: string } };
                if (reply.error) reject(new Error(reply.error.desc));
                else if (reply.id === command) resolve();
            });
        });
        await within(command, executed);
        socket.destroy();
    }

    /** Waits until the guest uses the CPUs of a list such as "0-3". */
    async online(list: string): Promise<void> {
        await this.process.line(new RegExp(`^ONLINE ${list}$`));
    }

    async stop(): Promise<void> {
        this.orders?.destroy();
        await this.process.kill('SIGKILL');
    }
}

const listen = (socket: string) => `unix:${socket},server=on,wait=off`;
