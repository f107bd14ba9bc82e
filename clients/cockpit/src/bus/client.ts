// Owns the edge to D-Bus: typed calls, decoded variants and errors. It is the only file that calls cockpit.dbus(), and
// must not know what the values mean.
import type { AnyInterface, Description, Variant } from '../generated/interfaces';

/** Whose rights a call has: those of the user of the session, or those of root (administrative access of Cockpit). */
export type Access = 'user' | 'administrator';

type Dictionary = Record<string, Variant>;
type Method<I extends AnyInterface, M extends keyof I['methods']> =
    I['methods'][M] extends { in: infer In extends unknown[]; out: infer Out } ? { in: In; out: Out } : never;

/** A call that failed, with the name of the D-Bus error, or the problem of Cockpit if no service answered. */
export class CallError extends Error {
    constructor(readonly code: string, message: string) {
        super(message);
    }

    static of(error: unknown): CallError {
        if (error instanceof CallError) return error;
        const { name, problem, message } = error as Partial<cockpit.BasicError>;
        return new CallError(problem ?? name ?? 'failed', message ?? String(error));
    }
}

/** How long a service can take to answer a question, in milliseconds. */
const PATIENCE = 5000;

/** Waits for a reply as long as it takes, and says once that it is late. */
export async function patiently<T>(reply: Promise<T>, onLate: () => void): Promise<T> {
    const timer = window.setTimeout(onLate, PATIENCE);
    try {
        return await reply;
    } finally {
        window.clearTimeout(timer);
    }
}

/** Returns the values of a dictionary without their signatures. */
export function plain<T>(dictionary: Dictionary): T {
    return Object.fromEntries(Object.entries(dictionary).map(([key, variant]) => [key, variant.v])) as T;
}

export const number = (v: number): Variant => ({ t: 't', v });
export const text = (v: string): Variant => ({ t: 's', v });
export const truth = (v: boolean): Variant => ({ t: 'b', v });

export interface Signal { path: string; interface: string; name: string; args: unknown[] }

export interface Listener {
    /** The service owns its name, or has lost it. */
    onOwner(owner: string | null): void;
    onSignal(signal: Signal): void;
    /** The bus has no such service, or cannot start it. */
    onClose(error: CallError): void;
}

/** A service on the system bus. The constructor starts it if the bus can. */
export class Service {
    private readonly client: cockpit.DBusClient;
    /** The process that owns the name. The bus does not start a service for calls of it. */
    private process: cockpit.DBusClient | null = null;
    private administrator: cockpit.DBusClient | null = null;

    constructor(private readonly busName: string, path: string, listener: Listener) {
        this.client = cockpit.dbus(busName, { bus: 'system' });
        this.client.addEventListener('owner', (_event, owner) => {
            const former = this.process;
            this.process = owner ? cockpit.dbus(owner, { bus: 'system' }) : null;
            listener.onOwner(owner);
            former?.close('disconnected');
        });
        this.client.addEventListener('close', (_event, { problem }) => {
            const code = problem ?? 'disconnected';
            listener.onClose(new CallError(code, code));
        });
        this.client.subscribe({ path_namespace: path }, (where, iface, name, args) =>
            listener.onSignal({ path: where, interface: iface, name, args: args ?? [] }));
    }

    /**
     * Calls a method. A call without `access` is a question: it has the rights of the user, and fails if the service does
     * not run. Other calls start the service. There is no time limit: the service has its own, and polkit waits for a
     * password.
     */
    async call<I extends AnyInterface, M extends keyof I['methods'] & string>(
        description: Description<I>, path: string, method: M, args: Method<I, M>['in'], access?: Access,
    ): Promise<Method<I, M>['out']> {
        const type = description.signatures[method];
        return await this.send(access, path, description.name, method, args, type);
    }

    /** Returns all objects below a path with their properties, as a question. */
    async managedObjects(path: string): Promise<Record<string, Record<string, Dictionary>>> {
        const iface = 'org.freedesktop.DBus.ObjectManager';
        const [objects] = await this.send(undefined, path, iface, 'GetManagedObjects', [], '');
        return objects as Record<string, Record<string, Dictionary>>;
    }

    private async send(access: Access | undefined, path: string, iface: string, method: string, args: unknown[], type: string) {
        try {
            return await this.clientFor(access).call(path, iface, method, args, { type });
        } catch (error) {
            throw CallError.of(error);
        }
    }

    private clientFor(access: Access | undefined): cockpit.DBusClient {
        if (access === 'user') return this.client;
        if (!access) {
            if (this.process) return this.process;
            throw new CallError('not-found', `${this.busName} is not running`);
        }
        if (!this.administrator) {
            this.administrator = cockpit.dbus(this.busName, { bus: 'system', superuser: 'require' });
            // The user can get administrative access later, so that the next call opens it again.
            this.administrator.addEventListener('close', () => { this.administrator = null; });
        }
        return this.administrator;
    }

    close(): void {
        this.client.close();
        this.process?.close();
        this.administrator?.close();
    }
}

/** Calls back when a name on the system bus gets or loses its owner, and once with the present state. */
export function watchName(name: string, onChange: (isOwned: boolean) => void): () => void {
    const bus = 'org.freedesktop.DBus';
    const path = '/org/freedesktop/DBus';
    const daemon = cockpit.dbus(bus, { bus: 'system' });
    daemon.subscribe({ path, interface: bus, member: 'NameOwnerChanged', arg0: name },
        (_path, _interface, _signal, args) => onChange(Boolean(args?.[2])));
    daemon.call(path, bus, 'NameHasOwner', [name], { type: 's' })
        .then(([isOwned]) => onChange(Boolean(isOwned)), () => onChange(false));
    return () => daemon.close();
}
