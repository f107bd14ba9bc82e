// Owns the machines that the page knows: from the objects of the service and its signals to a list. Pure; it must not
// call the service.
import type { Machine, Manager } from '../generated/interfaces';

export type Properties = Machine['properties'];

/** A machine and its object path. */
export interface MachineState extends Properties {
    path: string;
    /** The number of the QEMU process among those that the page has seen. A VM with the same name has another number. */
    generation: number;
    /** The last known identity of this process. The properties are empty until vcpud has found the process. */
    process: Identity;
}

/**
 * What distinguishes a QEMU process from another one at the same path. Since does not: another instance of vcpud can
 * calculate another time for the same process.
 */
export interface Identity { leader: number; uuid: string }

/** The service as the page knows it. Each change makes a new value. */
export interface Fleet {
    version: string;
    configurationErrors: string[];
    machines: ReadonlyMap<string, MachineState>;
    /** How many QEMU processes the page has seen. */
    generations: number;
}

type Values = Record<string, unknown>;

export const MACHINE = 'org.vcpud1.Machine';
export const MANAGER = 'org.vcpud1.Manager';

export const NO_MACHINES: Fleet = { version: '', configurationErrors: [], machines: new Map(), generations: 0 };

/** Returns the fleet of all objects of the service. A machine that `former` has stays the same one. */
export function fleetOf(objects: (readonly [string, Record<string, Values>])[], former = NO_MACHINES): Fleet {
    const paths = new Set(objects.filter(([, interfaces]) => interfaces[MACHINE]).map(([path]) => path));
    const machines = new Map([...former.machines].filter(([path]) => paths.has(path)));
    const kept: Fleet = { ...former, machines };
    return objects.reduce((fleet, [path, interfaces]) => added(fleet, path, interfaces), kept);
}

/** Returns the fleet with an object that was added. */
export function added(fleet: Fleet, path: string, interfaces: Record<string, Values>): Fleet {
    const manager = interfaces[MANAGER] ? changed(fleet, path, MANAGER, interfaces[MANAGER]) : fleet;
    const properties = interfaces[MACHINE];
    if (!properties) return manager;
    return withMachine(manager, path, properties as unknown as Properties);
}

/** Returns the fleet with a machine. It is another one if its process is known to be another one. */
function withMachine(fleet: Fleet, path: string, properties: Properties): Fleet {
    const former = fleet.machines.get(path);
    const { Leader: leader, Uuid: uuid } = properties;
    const differs = (a: unknown, b: unknown) => Boolean(a && b && a !== b);
    const isSame = former && !differs(former.process.leader, leader) && !differs(former.process.uuid, uuid);
    const process = isSame ? { leader: leader || former.process.leader, uuid: uuid || former.process.uuid } : { leader, uuid };
    const generations = isSame ? fleet.generations : fleet.generations + 1;
    const machine = { ...properties, path, process, generation: isSame ? former.generation : generations };
    return { ...fleet, generations, machines: new Map(fleet.machines).set(path, machine) };
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
    return withMachine(fleet, path, { ...machine, ...values });
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
