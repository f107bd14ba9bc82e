// Owns the tests of the store: the order of the replies and signals that Cockpit delivers.
import './cockpit';

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Store } from '../../src/bus/store';
import { MACHINE } from '../../src/model/fleet';

type Objects = Record<string, Record<string, Record<string, { t: string; v: unknown }>>>;

/** Returns the properties of a machine as Cockpit decodes them. */
const machine = (Vcpus: number) => ({ [MACHINE]: { Name: { t: 's', v: 'web' }, Vcpus: { t: 'u', v: Vcpus } } });

/** A service that the test drives. All clients of the store are connected to it. */
class FakeService {
    private signal: cockpit.SignalCallback = () => undefined;
    private owner: (event: unknown, owner: string | null) => void = () => undefined;
    private reply: (values: unknown[]) => void = () => undefined;

    constructor() {
        Object.assign(globalThis, { window: globalThis });
        Object.assign(cockpit, { dbus: (name: string) => this.client(name === 'org.vcpud1') });
    }

    private client(isService: boolean) {
        return {
            call: (_path: string, _interface: string, method: string) => new Promise(resolve => {
                if (method === 'GetManagedObjects') this.reply = resolve;
            }),
            subscribe: (_match: unknown, callback: cockpit.SignalCallback) => { if (isService) this.signal = callback; },
            addEventListener: (event: string, callback: () => void) => { if (isService && event === 'owner') this.owner = callback; },
            close: () => undefined,
        };
    }

    start(): void { this.owner(null, ':1.1'); }
    stop(): void { this.owner(null, null); }
    answer(objects: Objects): void { this.reply([objects]); }
    emit(path: string, name: string, ...args: unknown[]): void { this.signal(path, '', name, args); }
}

/** Waits until the store has applied the replies that it has. */
const applied = () => new Promise(resolve => { setImmediate(resolve); });

const vcpusOf = (store: Store) => [...store.current().fleet.machines].map(([path, { Vcpus }]) => [path, Vcpus]);

test('signals that Cockpit delivers with the reply are not lost', async () => {
    const service = new FakeService();
    const store = new Store();
    service.start();
    service.emit('/old', 'PropertiesChanged', MACHINE, { Vcpus: { t: 'u', v: 9 } });
    service.answer({ '/a': machine(1), '/b': machine(1) });
    service.emit('/a', 'PropertiesChanged', MACHINE, { Vcpus: { t: 'u', v: 2 } });
    service.emit('/', 'InterfacesRemoved', '/b', [MACHINE]);
    service.emit('/', 'InterfacesAdded', '/c', machine(3));
    await applied();
    assert.deepEqual(vcpusOf(store), [['/a', 2], ['/c', 3]]);
    assert.equal(store.current().status.kind, 'ready');
});

test('a reply of a service that has ended is ignored', async () => {
    const service = new FakeService();
    const store = new Store();
    service.start();
    service.stop();
    service.answer({ '/a': machine(1) });
    await applied();
    assert.deepEqual(vcpusOf(store), []);
    assert.equal(store.current().status.kind, 'stopped');
});
