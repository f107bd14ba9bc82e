// Owns the progress of one change of the number of vCPUs: the plan, and the events that signals report. Pure.
import type { CallError } from '../bus/client';
import type { Vcpu } from './vcpus';

export interface Refusal { reason: string; code: string }

/** An event of a vCPU, from a signal of its machine. */
export type VcpuEvent =
    | { kind: 'added' | 'started' | 'removed'; vcpu: number; cause: string; uid: number | undefined }
    | { kind: 'refused'; vcpu: number; cause: string; uid: number | undefined; refusal: Refusal };

export type Result = 'running' | 'done' | { error: CallError };

/** A change that the user of the page requested. */
export interface Change {
    target: number;
    expected: { added: readonly number[]; removed: readonly number[] };
    added: ReadonlySet<number>;
    started: ReadonlySet<number>;
    /** The added vCPUs of which nothing shows whether the guest has started them. */
    unknown: ReadonlySet<number>;
    removed: ReadonlySet<number>;
    refused: ReadonlyMap<number, Refusal>;
    result: Result;
}

export function begun(target: number, added: readonly number[], removed: readonly number[]): Change {
    const none: ReadonlySet<number> = new Set();
    return {
        target, expected: { added, removed }, added: none, started: none, unknown: none, removed: none, refused: new Map(),
        result: 'running',
    };
}

/** Returns the change after an event. Events of vCPUs that the change does not include are ignored. */
export function observed(change: Change, event: VcpuEvent): Change {
    const { added, removed } = change.expected;
    switch (event.kind) {
    case 'added':
        return added.includes(event.vcpu) ? { ...change, added: new Set(change.added).add(event.vcpu) } : change;
    case 'started':
        return added.includes(event.vcpu) ? { ...change, started: new Set(change.started).add(event.vcpu) } : change;
    case 'removed':
        if (!removed.includes(event.vcpu)) return change;
        return { ...change, removed: new Set(change.removed).add(event.vcpu), refused: without(change, event.vcpu) };
    case 'refused':
        if (!removed.includes(event.vcpu)) return change;
        return { ...change, refused: new Map(change.refused).set(event.vcpu, event.refusal) };
    }
}

/** Returns the change with what the rows of ListVcpus() show: present vCPUs without the key `started` have no evidence. */
export function informed(change: Change, rows: readonly Vcpu[]): Change {
    const unknown = rows.filter(row => row.present && row.started === undefined).map(row => row.id ?? 0);
    return { ...change, unknown: new Set(unknown.filter(vcpu => change.expected.added.includes(vcpu))) };
}

function without(change: Change, vcpu: number): ReadonlyMap<number, Refusal> {
    const refused = new Map(change.refused);
    refused.delete(vcpu);
    return refused;
}

/** The state of a change as a whole. */
export type Phase = 'running' | 'starting' | 'pending' | 'complete' | 'failed';

export const REMOVAL_PENDING = 'org.vcpud1.Error.RemovalPending';

/** Returns what the change waits for. The guest can start or release vCPUs after the call. */
export function phaseOf(change: Change): Phase {
    const { result, expected } = change;
    if (result === 'running') return 'running';
    const isRemoved = expected.removed.every(vcpu => change.removed.has(vcpu));
    if (result !== 'done') {
        const isPending = result.error.code === REMOVAL_PENDING && change.refused.size === 0;
        return !isPending ? 'failed' : isRemoved ? 'complete' : 'pending';
    }
    return expected.added.every(vcpu => change.started.has(vcpu) || change.unknown.has(vcpu)) ? 'complete' : 'starting';
}

/** Returns whether the machine had the number of a change, and has or will have another one. */
export const isOutdated = (change: Change, wanted: number): boolean =>
    ['starting', 'complete'].includes(phaseOf(change)) && wanted !== change.target;
