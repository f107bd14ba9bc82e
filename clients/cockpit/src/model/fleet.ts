// Owns the machines that the page knows: from the objects of the service and its signals to a list. Pure; it must not
// call the service.
import type { Machine, Manager } from '../generated/interfaces';

export type Properties = Machine['properties'];

/** A machine and its object path. */
export interface MachineState extends Properties { path: string }

/** The service as the page knows it. Each change makes a new value. */
export interface Fleet {
    version: string;
    configurationErrors: string[];
    machines: ReadonlyMap<string, MachineState>;
}

type Values = Record<string, unknown>;

export const MACHINE = 'org.vcpud1.Machine';
export const MANAGER = 'org.vcpud1.Manager';

export const NO_MACHINES: Fleet = { version: '', configurationErrors: [], machines: new Map() };

export function fleetOf(objects: (readonly [string, Record<string, Values>])[]): Fleet {
    return objects.reduce((fleet, [path, interfaces]) => added(fleet, path, interfaces), NO_MACHINES);
}

/** Returns the fleet with an object that was added. */
export function added(fleet: Fleet, path: string, interfaces: Record<string, Values>): Fleet {
    const manager = interfaces[MANAGER] ? changed(fleet, path, MANAGER, interfaces[MANAGER]) : fleet;
    const properties = interfaces[MACHINE];
    if (!properties) return manager;
    const machine = { ...properties, path } as unknown as MachineState;
    return { ...manager, machines: new Map(manager.machines).set(path, machine) };
}

/** Returns the fleet without an object that was removed. */
export function removed(fleet: Fleet, path: string, interfaces: string[]): Fleet {
    if (!interfaces.includes(MACHINE)) return fleet;
    const machines = new Map(fleet.machines);
    machines.delete(path);
    return { ...fleet, machines };
}

/** Returns the fleet with changed properties. Changes of an unknown machine are ignored: its values follow. */
export function changed(fleet: Fleet, path: string, iface: string, values: Values): Fleet {
    if (iface === MANAGER) {
        const { Version, ConfigurationErrors } = values as Partial<Manager['properties']>;
        return {
            ...fleet,
            version: Version ?? fleet.version,
            configurationErrors: ConfigurationErrors ?? fleet.configurationErrors,
        };
    }
    const machine = fleet.machines.get(path);
    if (iface !== MACHINE || !machine) return fleet;
    return { ...fleet, machines: new Map(fleet.machines).set(path, { ...machine, ...values }) };
}

/** What a signal of the service says about its objects. */
export type ObjectEvent =
    | { kind: 'added'; path: string; interfaces: Record<string, Values> }
    | { kind: 'removed'; path: string; interfaces: string[] }
    | { kind: 'changed'; path: string; iface: string; values: Values };

/** Returns the fleet after an event. */
export function after(fleet: Fleet, event: ObjectEvent): Fleet {
    switch (event.kind) {
    case 'added': return added(fleet, event.path, event.interfaces);
    case 'removed': return removed(fleet, event.path, event.interfaces);
    case 'changed': return changed(fleet, event.path, event.iface, event.values);
    }
}

/** Returns the machines in the order of their names, where "web10" follows "web9". */
export function sorted(fleet: Fleet): MachineState[] {
    const order = new Intl.Collator('en', { numeric: true });
    return [...fleet.machines.values()].sort((a, b) => order.compare(a.Name, b.Name));
}

export const isConnected = (machine: MachineState): boolean => machine.State !== 'disconnected';

/** Returns whether QEMU has answered since the service started. Before that, the numbers of vCPUs are 0. */
export const hasAnswered = (machine: MachineState): boolean => machine.MaxVcpus > 0;

/** The user id that stands for "not known". */
export const NO_USER = 4294967295;
