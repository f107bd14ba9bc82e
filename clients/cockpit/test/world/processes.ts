// Owns the processes of a world: starts them, waits for what they print, and ends them in reverse order.
import { spawn } from 'node:child_process';
import type { ChildProcess, SpawnOptions } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';

/** The time limit of each wait, in milliseconds. */
export const LIMIT = 60_000;

/** Fails with the name of the wait if it takes too long. */
export async function within<T>(what: string, wait: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => reject(new Error(`timed out waiting for ${what}`)), LIMIT);
    });
    try {
        return await Promise.race([wait, limit]);
    } finally {
        clearTimeout(timer);
    }
}

/** A process whose output is kept, for waits and for readers of a failed test. */
export class Process {
    readonly lines: string[] = [];
    private readonly child: ChildProcess;
    private readonly waiting = new Set<() => void>();
    /** Resolves when the process has ended, without a time limit. */
    readonly ended: Promise<void>;
    /** The exit status, if it has ended by itself. */
    status: number | null = null;

    constructor(readonly name: string, command: string, args: string[], options: SpawnOptions = {}) {
        this.child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
        for (const stream of [this.child.stdout, this.child.stderr]) {
            if (stream) createInterface(stream).on('line', line => this.receive(line));
        }
        this.ended = new Promise(resolve => {
            this.child.on('error', error => { this.receive(String(error)); resolve(); });
            this.child.on('close', (code, signal) => {
                this.status = code;
                if (code !== 0) this.receive(`${name} ended: ${signal ?? code}`);
                resolve();
            });
        });
    }

    get pid(): number {
        if (this.child.pid === undefined) throw new Error(`${this.name} did not start: ${this.lines.join('\n')}`);
        return this.child.pid;
    }

    private receive(line: string): void {
        this.lines.push(line);
        this.waiting.forEach(check => check());
    }

    /** Waits until the process has printed a line, and returns it. Lines before `from` do not count. */
    async line(pattern: RegExp, from = 0): Promise<string> {
        const find = () => this.lines.slice(from).find(line => pattern.test(line));
        const found = new Promise<string>(resolve => {
            const check = () => {
                const line = find();
                if (line === undefined) return;
                this.waiting.delete(check);
                resolve(line);
            };
            this.waiting.add(check);
            check();
        });
        const failed = this.ended.then(() => {
            const line = find();
            if (line !== undefined) return line;
            throw new Error(`${this.name} ended:\n${this.lines.slice(-20).join('\n')}`);
        });
        return within(`${pattern} of ${this.name}`, Promise.race([found, failed]));
    }

    /** Waits until the process has ended by itself. */
    async end(): Promise<void> {
        await within(`the end of ${this.name}`, this.ended);
    }

    signal(signal: NodeJS.Signals): void {
        this.child.kill(signal);
    }

    async kill(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
        this.child.kill(signal);
        await this.end();
    }
}

/** Runs a command, which must succeed, and returns what it prints. */
export async function run(command: string, args: string[], options: SpawnOptions = {}): Promise<string> {
    const process = new Process(command, command, args, options);
    try {
        await process.end();
    } catch (error) {
        process.signal('SIGKILL');
        throw error;
    }
    const output = process.lines.join('\n');
    if (process.status !== 0) throw new Error(`${command} ${args.join(' ')} failed: ${output}`);
    return output;
}

/** Waits until a file exists. Its directories can appear later than `root`. */
export async function exists(file: string, root = path.dirname(file)): Promise<void> {
    const created = new Promise<void>(resolve => {
        const watcher = fs.watch(root, { recursive: true }, check);
        function check() {
            if (!fs.existsSync(file)) return;
            watcher.close();
            resolve();
        }
        check();
    });
    await within(file, created);
}

/** Returns a free TCP port of the loopback interface. */
export async function freePort(): Promise<number> {
    const server = net.createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as net.AddressInfo;
    server.close();
    await once(server, 'close');
    return port;
}

/** Waits until a program listens on a TCP port, which the kernel reports in a file without events. */
export async function listening(port: number): Promise<void> {
    const address = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A`;
    await until(`a listener on port ${port}`, () => fs.readFileSync('/proc/net/tcp', 'utf8').includes(address));
}

/** Waits for something in /proc, which has no events. */
export async function until(what: string, isTrue: () => boolean): Promise<void> {
    const found = new Promise<void>(resolve => {
        const timer = setInterval(() => {
            if (!isTrue()) return;
            clearInterval(timer);
            resolve();
        }, 20);
    });
    await within(what, found);
}

/** Returns the command lines of all processes. */
export function commandLines(): string[] {
    return fs.readdirSync('/proc').filter(name => /^\d+$/.test(name)).flatMap(pid => {
        try {
            return [fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')];
        } catch {
            return []; // It has ended.
        }
    });
}
