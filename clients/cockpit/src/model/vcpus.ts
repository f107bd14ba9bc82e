// Owns the rows of the table of vCPUs: the values of ListVcpus() and their differences from the desired ones. Pure.
import type { Machine } from '../generated/interfaces';

export type Vcpu = Machine['keys']['ListVcpus'];

/** A value in force, and the desired one if it differs. */
export interface Setting { actual: string; desired: string | undefined }

/** Returns the host CPUs of a vCPU. Without a desired value, any actual value is right. */
export function affinityOf(vcpu: Vcpu): Setting {
    const actual = vcpu.affinity ?? '';
    const desired = vcpu['desired-affinity'];
    const differs = desired !== undefined && actual !== '' && !isSameList(desired, actual);
    return { actual: actual || desired || '', desired: differs ? desired : undefined };
}

export function schedulerOf(vcpu: Vcpu): Setting {
    const actual = vcpu.scheduler ? withPriority(vcpu.scheduler, vcpu.priority) : '';
    const wanted = vcpu['desired-scheduler'];
    const desired = wanted ? withPriority(wanted, vcpu['desired-priority']) : undefined;
    const differs = desired !== undefined && actual !== '' && desired !== actual;
    return { actual: actual || desired || '', desired: differs ? desired : undefined };
}

const withPriority = (policy: string, priority = 0): string => (priority ? `${policy} ${priority}` : policy);

/** Returns whether two lists of host CPUs such as "0-3,8" have the same CPUs. */
export function isSameList(a: string, b: string): boolean {
    const [one, other] = [members(a), members(b)];
    return one.size === other.size && [...one].every(cpu => other.has(cpu));
}

function members(list: string): Set<number> {
    const cpus = new Set<number>();
    for (const range of list.split(',').filter(part => part !== '')) {
        const [first = 0, last = first] = range.split('-').map(Number);
        for (let cpu = first; cpu <= last; cpu++) cpus.add(cpu);
    }
    return cpus;
}

/**
 * Returns a list of host CPUs without spaces, or undefined if a text is none. The service checks whether the host has the
 * CPUs.
 */
export function cpuListOf(text: string): string | undefined {
    const list = text.replace(/\s*([,-]|^|$)\s*/g, '$1');
    const ranges = list.split(',').map(range => /^(\d+)(?:-(\d+))?$/.exec(range));
    return ranges.every(range => range && Number(range[1]) <= Number(range[2] ?? range[1])) ? list : undefined;
}

/**
 * Returns the pin that all chosen vCPUs have, which is empty without one, or undefined if they have different ones. The
 * affinity of a vCPU without a pin is not one.
 */
export function commonPin(pins: readonly [number, string][], chosen: readonly number[]): string | undefined {
    const own = new Map(pins);
    const [first = '', ...others] = new Set(chosen.map(id => own.get(id) ?? ''));
    return others.length === 0 ? first : undefined;
}

export type Presence = 'free' | 'pending' | 'not-started' | 'offline' | 'present';

/** Returns the state of a vCPU for the table. */
export function presenceOf(vcpu: Vcpu): Presence {
    if (!vcpu.present) return 'free';
    if (vcpu.pending) return 'pending';
    if (vcpu.started === false) return 'not-started';
    return vcpu.online === false ? 'offline' : 'present';
}

/** The limit of the CPU time of each vCPU. */
export interface Bandwidth { periodUsec: number; quotaUsec: number }

/** Returns the share of a host CPU that a limit allows, in percent, or undefined without a limit. */
export function percentOf({ periodUsec, quotaUsec }: Bandwidth): number | undefined {
    return quotaUsec < 0 ? undefined : Math.round(quotaUsec / periodUsec * 1000) / 10;
}

/** Returns the limit for a share in percent. The kernel accepts no quota below 1 ms. */
export function bandwidthFor(percent: number | undefined, periodUsec: number): Bandwidth {
    if (percent === undefined) return { periodUsec, quotaUsec: -1 };
    return { periodUsec, quotaUsec: Math.max(1000, Math.round(periodUsec * percent / 100)) };
}
