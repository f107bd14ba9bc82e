// Owns the hooks that read one machine: its vCPUs, its plan, and the progress of a change.
import { useCallback, useEffect, useRef, useState } from 'react';

import { CallError, plain } from '../bus/client';
import type { VcpuEvent } from '../model/change';
import { isConnected } from '../model/fleet';
import type { MachineState } from '../model/fleet';
import { oneAtATime } from '../model/one-at-a-time';
import type { Permission } from '../model/permission';
import { isSameQuestion, questionFor } from '../model/plan';
import type { Question } from '../model/plan';
import type { Vcpu } from '../model/vcpus';
import type { Machine } from '../generated/interfaces';
import { useCanRead, useEvery, useIsReady, usePage } from './page';

/** Calls back with the events of a machine. */
export function useEvents(path: string, onEvent: (event: VcpuEvent | 'changed') => void): void {
    const { store } = usePage();
    const latest = useRef(onEvent);
    useEffect(() => { latest.current = onEvent; });
    useEffect(() => store.onEvent(path, event => latest.current(event)), [store, path]);
}

/** Returns whether the service takes calls about a machine, and QEMU can perform them. */
export const useCanChange = (machine: MachineState): boolean => useIsReady() && isConnected(machine);

/** Runs one call at a time, with the values of the last render. */
function useOneAtATime(call: () => Promise<void>): () => void {
    const latest = useRef(call);
    useEffect(() => { latest.current = call; });
    const ask = useRef<() => Promise<void>>(undefined);
    return useCallback(() => {
        ask.current ??= oneAtATime(() => latest.current());
        void ask.current();
    }, []);
}

/** Returns the rows of ListVcpus(), or undefined before the first reply. They follow the signals. */
export function useVcpus(machine: MachineState): { vcpus: Vcpu[] | undefined; refresh: () => void } {
    const { store } = usePage();
    const canRead = useCanRead();
    const [vcpus, setVcpus] = useState<Vcpu[]>();
    const refresh = useOneAtATime(async () => {
        if (!canRead) return;
        try {
            const [rows] = await store.machine(machine.path, 'ListVcpus', []);
            setVcpus(rows.map(row => plain<Vcpu>(row)));
        } catch {
            // The rows stay. The banner of the page reports a service that does not answer.
        }
    });
    useEffect(refresh, [refresh, machine, canRead]);
    // No signal reports the values of the kernel.
    useEvery(5, refresh);
    useEvents(machine.path, event => { if (event === 'changed') refresh(); });
    return { vcpus, refresh };
}

/** The plan for a number of vCPUs, and whether the user is authorized for it. */
export interface PlanState {
    question: Question;
    plan: Machine['keys']['Plan'];
    permission: Permission;
    error: CallError | null;
}

/**
 * Returns the plan for a number of vCPUs, or undefined while the service has not answered. The plan of a machine that had
 * other vCPUs is none.
 */
export function usePlan(machine: MachineState, count: number): PlanState | undefined {
    const { store } = usePage();
    const isReady = useIsReady();
    const canRead = useCanRead();
    const [state, setState] = useState<PlanState>();
    const question = questionFor(machine, count);
    const ask = useOneAtATime(async () => {
        if (!canRead) return;
        try {
            const [plan] = await store.machine(machine.path, 'Plan', [count, {}]);
            const [permission] = await store.machine(machine.path, 'CanSetVcpus', [count]);
            setState({ question, plan: plain(plan), permission: permission as Permission, error: null });
        } catch (caught) {
            setState({ question, plan: {}, permission: 'na', error: CallError.of(caught) });
        }
    });
    // The plan depends on these properties.
    const { Vcpus, StartedVcpus, State, PendingRemovals } = machine;
    useEffect(ask, [ask, canRead, count, Vcpus, StartedVcpus, State, PendingRemovals]);
    return isReady && isConnected(machine) && state && isSameQuestion(state.question, question) ? state : undefined;
}

/** Returns whether the user can change the placement of a machine, or undefined while the service has not answered. */
export function useCanTune(machine: MachineState, operation: 'pin' | 'bandwidth'): Permission | undefined {
    const { store } = usePage();
    const canRead = useCanRead();
    const [permission, setPermission] = useState<Permission>();
    const ask = useOneAtATime(async () => {
        if (!canRead) return;
        try {
            const [result] = await store.machine(machine.path, 'CanTune', [operation]);
            setPermission(result as Permission);
        } catch {
            // The change itself shows what is wrong.
            setPermission('yes');
        }
    });
    // The answer depends on these properties.
    const { State, Placement, PlacementErrors, Vcpus } = machine;
    useEffect(ask, [ask, canRead, State, Placement, PlacementErrors, Vcpus]);
    return permission;
}

export type Tuning = Machine['keys']['GetTuning'];

/** Returns the desired values, which follow the signals of the machine. */
export function useTuning(machine: MachineState): Tuning | undefined {
    const { store } = usePage();
    const canRead = useCanRead();
    const [tuning, setTuning] = useState<Tuning>();
    const ask = useOneAtATime(async () => {
        if (!canRead) return;
        try {
            const [values] = await store.machine(machine.path, 'GetTuning', []);
            setTuning(plain<Tuning>(values));
        } catch {
            // The values stay. The banner of the page reports a service that does not answer.
        }
    });
    useEffect(ask, [ask, machine, canRead]);
    useEvents(machine.path, event => { if (event === 'changed') ask(); });
    return tuning;
}
