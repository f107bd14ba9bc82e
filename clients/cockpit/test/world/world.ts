// Owns a world: a private bus, polkitd, vcpud, guests, and Cockpit in front of them, all real and without systemd. It
// changes nothing on the machine, and ends all that it started.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { Bus, repository, startPolkit } from './bus';
import { startWebServer } from './cockpit';
import { Guest } from './guest';
import type { Boot } from './guest';
import { inside } from './namespace';
import type { Bind } from './namespace';
import { exists, freePort, Process, run } from './processes';

/** The programs of vcpud, as `make` names their directory. */
const programs = process.env.BUILD ?? path.join(process.env.CARGO_TARGET_DIR ?? path.join(repository, 'target'), 'debug');
const page = path.resolve(import.meta.dirname, '../..');

/** The user of a session of Cockpit. */
export interface User { uid: number; gid: number }
export const ROOT: User = { uid: 0, gid: 0 };
export const NOBODY: User = { uid: 65534, gid: 65534 };

/** sudo lets the user of the session become root without a password. */
const sudoers = 'Defaults env_keep += "DBUS_SYSTEM_BUS_ADDRESS"\nnobody ALL=(ALL) NOPASSWD: ALL\n';

export class World {
    readonly guests = new Map<string, Guest>();
    private readonly processes: Process[] = [];
    private vcpud: Process | undefined;
    private isStopping = false;
    /** Where vcpud and Cockpit find a journal. */
    private journal: Bind[] = [];

    private constructor(readonly directory: string, readonly bus: Bus) {}

    /** Starts a bus and polkitd with rules in JavaScript. */
    static async start(rules = ''): Promise<World> {
        const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'vcpud-cockpit.'));
        fs.chmodSync(directory, 0o755);
        const bus = await Bus.start(directory);
        const world = new World(directory, bus);
        world.processes.push(bus.daemon, await startPolkit(bus, directory, rules));
        fs.cpSync(path.join(page, 'dist'), path.join(directory, 'data/cockpit/vcpud'), { recursive: true });
        return world;
    }

    get sockets(): string {
        return path.join(this.directory, 'run/qmp');
    }

    private directoryFor(name: string): string {
        const directory = path.join(this.directory, name);
        fs.mkdirSync(directory, { recursive: true });
        return directory;
    }

    /** Starts a real systemd-journald. vcpud and Cockpit that start later use it. */
    async startJournal(): Promise<void> {
        const [runtime, log] = [this.directoryFor('systemd'), this.directoryFor('log')];
        // It leaves the log and the audit of the kernel alone.
        fs.mkdirSync(path.join(runtime, 'journald.conf.d'));
        fs.writeFileSync(path.join(runtime, 'journald.conf.d/world.conf'), '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\n');
        this.journal = [[runtime, '/run/systemd'], [log, '/run/log']];
        const journald = new Process('journald', ...inside(this.journal, '/usr/lib/systemd/systemd-journald'));
        this.processes.push(journald);
        await exists(path.join(runtime, 'journal/socket'), runtime);
    }

    async startService(): Promise<void> {
        this.vcpud = new Process('vcpud', ...inside(this.journal, path.join(programs, 'vcpud')), {
            env: {
                ...this.bus.env,
                // As systemd sets it for a service that logs to the journal.
                ...(this.journal.length > 0 && { JOURNAL_STREAM: '1:1' }),
                RUNTIME_DIRECTORY: this.directoryFor('run'),
                CONFIGURATION_DIRECTORY: this.directoryFor('etc'),
                MALLOC_ARENA_MAX: '2',
            },
        });
        await this.bus.owned('org.vcpud1');
    }

    /** Sends a signal to vcpud. */
    signalService(signal: NodeJS.Signals): void {
        this.vcpud?.signal(signal);
    }

    /** Ends vcpud. */
    async stopService(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
        await this.vcpud?.kill(signal);
        this.vcpud = undefined;
    }

    /** Starts vcpud-autoscale again whenever it ends, which it does without a machine. */
    async keepAutoscaler(): Promise<void> {
        await this.keep(() => this.startAutoscaler());
    }

    private async keep(start: () => Promise<Process>): Promise<void> {
        const process = await start();
        void process.ended.then(() => { if (!this.isStopping) void this.keep(start); });
    }

    async startAutoscaler(): Promise<Process> {
        const configuration = this.directoryFor('autoscale');
        fs.writeFileSync(path.join(configuration, 'autoscale.toml'), 'host-cpus = 64\n');
        fs.mkdirSync(path.join(configuration, 'autoscale.d'), { recursive: true });
        const autoscaler = new Process('vcpud-autoscale', path.join(programs, 'vcpud-autoscale'), [], {
            env: {
                ...this.bus.env,
                CONFIGURATION_DIRECTORY: configuration,
                STATE_DIRECTORY: this.directoryFor('autoscale-state'),
            },
        });
        this.processes.push(autoscaler);
        await this.bus.owned('org.vcpud1.Autoscale');
        return autoscaler;
    }

    async startGuest(name: string, boot: Boot = {}): Promise<Guest> {
        const guest = Guest.start(name, this.sockets, this.directory, boot);
        this.guests.set(name, guest);
        await guest.booted();
        return guest;
    }

    /** Sets the number of vCPUs of a machine with vcpuctl, another client than the page. */
    async setVcpus(machine: string, count: number): Promise<void> {
        await run(path.join(programs, 'vcpuctl'), ['set', '--timeout=50s', machine, String(count)], { env: this.bus.env });
    }

    /** Lets the autoscaler decide about a machine and change nothing, with vcpuctl. */
    async observe(machine: string, min: number): Promise<void> {
        await run(path.join(programs, 'vcpuctl'), ['autoscale', '--observe', `--min=${min}`, machine], { env: this.bus.env });
    }

    /** Starts dbus-monitor, which prints the messages of the bus that match a rule. */
    async monitor(rule: string): Promise<Process> {
        const monitor = new Process('dbus-monitor', 'dbus-monitor', ['--address', this.bus.address, rule]);
        this.processes.push(monitor);
        await monitor.line(/NameAcquired|NameLost/);
        return monitor;
    }

    /** Starts cockpit-ws with a session of a user, and returns its address. */
    async startCockpit(user: User): Promise<string> {
        const port = await freePort();
        await this.startCockpitAt(port, user);
        return `http://127.0.0.1:${port}`;
    }

    /** Starts cockpit-ws again at the same address whenever it ends. */
    async keepCockpit(user: User): Promise<string> {
        const port = await freePort();
        await this.keep(() => this.startCockpitAt(port, user));
        return `http://127.0.0.1:${port}`;
    }

    private async startCockpitAt(port: number, user: User): Promise<Process> {
        const home = this.directoryFor(`home-${user.uid}`);
        fs.chownSync(home, user.uid, user.gid);
        const rules = this.directoryFor('sudoers');
        fs.writeFileSync(path.join(rules, 'world'), sudoers, { mode: 0o440 });
        const asUser = (command: string, ...args: string[]) => inside([...this.journal, [rules, '/etc/sudoers.d']],
            'setpriv', `--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', command, ...args);
        const cockpit = await startWebServer(port, {
            bridge: 'cockpit-bridge "$@"', home, as: asUser,
            env: { ...this.bus.env, XDG_DATA_HOME: path.join(this.directory, 'data') },
        });
        this.processes.push(cockpit);
        return cockpit;
    }

    /** Ends everything, and removes the files. */
    async stop(): Promise<void> {
        this.isStopping = true;
        await Promise.all([...this.guests.values()].map(guest => guest.stop()));
        await this.stopService();
        for (const process of this.processes.reverse()) await process.kill();
        fs.rmSync(this.directory, { recursive: true, force: true });
    }

    /** The last lines of all processes, for readers of a failed test. */
    log(): string {
        const all = [...this.processes, ...(this.vcpud ? [this.vcpud] : [])];
        return all.map(({ name, lines }) => `--- ${name}:\n${lines.slice(-30).join('\n')}`).join('\n');
    }
}
