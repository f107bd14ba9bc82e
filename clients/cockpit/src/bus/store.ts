// Owns the state of the page: the connection to the service, the machines, and the events of their vCPUs. It follows the
// signals of the service. Components read it with the hooks in hooks/.
import { Machine, Manager } from '../generated/interfaces';
import { after, fleetOf, MACHINE, NO_MACHINES } from '../model/fleet';
import type { Fleet, ObjectEvent } from '../model/fleet';
import type { VcpuEvent } from '../model/change';
import { CallError, patiently, plain, Service, watchName } from './client';
import type { Access, Signal } from './client';
import type { Variant } from '../generated/interfaces';

export const ROOT = '/org/vcpud1';
const NAME = 'org.vcpud1';

/**
 * The connection to the service. "silent": the service runs, and has not answered a read in time. After "stopped" and
 * "silent", the machines are those that the service had.
 */
export type Status = { kind: 'connecting' | 'ready' | 'silent' | 'stopped' } | { kind: 'failed'; error: CallError };

export interface State {
    status: Status; fleet: Fleet;
    /** Whether the service has told its machines at least once. */
    isRead: boolean;
}

type Dictionary = Record<string, Variant>;
type EventListener = (event: VcpuEvent | 'changed') => void;

/** The state of the page. There is one for its life. */
export class Store {
    private state: State = { status: { kind: 'connecting' }, fleet: NO_MACHINES, isRead: false };
    private service: Service | null = null;
    private unwatch: (() => void) | null = null;
    /** The events since the service was asked for all objects. Its reply can be older than them when it is applied. */
    private early: ObjectEvent[] | null = null;
    private readonly listeners = new Set<() => void>();
    private readonly eventListeners = new Map<string, Set<EventListener>>();

    constructor() {
        this.open();
    }

    readonly subscribe = (listener: () => void): (() => void) => {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    };

    readonly current = (): State => this.state;

    /** Starts the service if it does not run. */
    readonly open = (): void => {
        // The previous one has ended if the connection to the bus was lost.
        this.unwatch?.();
        this.unwatch = watchName(NAME, isOwned => { if (isOwned && !this.service) this.open(); });
        const former = this.service;
        const isCurrent = () => this.service === service;
        const service: Service = new Service(NAME, ROOT, {
            onOwner: owner => {
                if (isCurrent()) void (owner ? this.load() : this.stop());
            },
            onSignal: signal => { if (isCurrent()) this.receive(signal); },
            onClose: error => {
                if (!isCurrent()) return;
                this.service = null;
                this.early = null;
                this.update({ status: { kind: 'failed', error } });
            },
        });
        this.service = service;
        this.update({ status: { kind: 'connecting' } });
        former?.close();
    };

    /** Calls a method of a machine. Without `access`, the call is a question, which does not start the service. */
    readonly machine = async <M extends keyof Machine['methods']>(
        path: string, method: M, args: Machine['methods'][M]['in'], access?: Access,
    ): Promise<Machine['methods'][M]['out']> =>
        await this.connected().call(Machine, path, method, args, access) as Machine['methods'][M]['out'];

    /** Reads the counters of all machines. The calls also show whether the service answers. */
    readonly statistics = async (): Promise<Manager['methods']['GetStatistics']['out']> => {
        const values = await patiently(this.connected().call(Manager, ROOT, 'GetStatistics', [{}]), this.tellLate);
        if (this.state.status.kind === 'silent') this.update({ status: { kind: 'ready' } });
        return values;
    };

    /** Calls back with each event of the vCPUs of a machine, and with "changed" when ListVcpus() has other values. */
    onEvent(path: string, listener: EventListener): () => void {
        const listeners = this.eventListeners.get(path) ?? new Set();
        this.eventListeners.set(path, listeners.add(listener));
        return () => listeners.delete(listener);
    }

    private connected(): Service {
        if (!this.service) throw new CallError('not-found', 'vcpud is not running');
        return this.service;
    }

    private readonly tellLate = (): void => {
        const { kind } = this.state.status;
        if (kind === 'ready' || kind === 'connecting') this.update({ status: { kind: 'silent' } });
    };

    private async load(): Promise<void> {
        const service = this.connected();
        const early: ObjectEvent[] = [];
        this.early = early;
        try {
            const objects = await patiently(service.managedObjects(ROOT), this.tellLate);
            if (early !== this.early) return;
            const values = Object.entries(objects).map(([path, interfaces]) => [path, plainInterfaces(interfaces)] as const);
            this.early = null;
            this.update({ status: { kind: 'ready' }, isRead: true, fleet: early.reduce(after, fleetOf(values, this.state.fleet)) });
        } catch (error) {
            if (early !== this.early) return;
            this.early = null;
            this.update({ status: { kind: 'failed', error: CallError.of(error) } });
        }
    }

    private stop(): void {
        this.early = null;
        this.update({ status: { kind: 'stopped' } });
    }

    private receive(signal: Signal): void {
        const change = objectEventOf(signal);
        if (change) {
            this.early?.push(change);
            this.update({ fleet: after(this.state.fleet, change) });
        } else if (signal.interface === MACHINE) {
            const event = eventOf(signal);
            if (event) this.eventListeners.get(signal.path)?.forEach(listener => listener(event));
        }
    }

    private update(change: Partial<State>): void {
        this.state = { ...this.state, ...change };
        this.listeners.forEach(listener => listener());
    }
}

function plainInterfaces(interfaces: Record<string, Dictionary>): Record<string, Record<string, unknown>> {
    return Object.fromEntries(Object.entries(interfaces).map(([name, values]) => [name, plain(values)]));
}

/** Returns the event of an object that a signal reports. */
function objectEventOf(signal: Signal): ObjectEvent | undefined {
    switch (signal.name) {
    case 'PropertiesChanged': {
        const [iface, values] = signal.args as [string, Dictionary];
        return { kind: 'changed', path: signal.path, iface, values: plain(values) };
    }
    case 'InterfacesAdded': {
        const [path, interfaces] = signal.args as [string, Record<string, Dictionary>];
        return { kind: 'added', path, interfaces: plainInterfaces(interfaces) };
    }
    case 'InterfacesRemoved': {
        const [path, interfaces] = signal.args as [string, string[]];
        return { kind: 'removed', path, interfaces };
    }
    default: return undefined;
    }
}

type Details = Machine['keys']['VcpuAdded'] & Machine['keys']['VcpuRemovalFailed'];

/** Returns the event that a signal of a machine reports. */
function eventOf(signal: Signal): VcpuEvent | 'changed' | undefined {
    const kinds = { VcpuAdded: 'added', VcpuStarted: 'started', VcpuRemoved: 'removed' } as const;
    if (signal.name === 'VcpuChanged') return 'changed';
    if (signal.name === 'VcpuRemovalFailed') {
        const [vcpu, , reason, details] = signal.args as Machine['signals']['VcpuRemovalFailed'];
        const { cause = '', uid, 'reason-code': code = '' } = plain<Details>(details);
        return { kind: 'refused', vcpu, cause, uid, refusal: { reason, code } };
    }
    const kind = kinds[signal.name as keyof typeof kinds];
    if (!kind) return undefined;
    const [vcpu, , details] = signal.args as Machine['signals']['VcpuAdded'];
    const { cause = '', uid } = plain<Details>(details);
    return { kind, vcpu, cause, uid };
}
