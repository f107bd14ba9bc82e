// Owns the change of a machine that the user selects and requests. It outlives the cards, which are not shown while QEMU
// has not answered.
import { useState } from 'react';

import { CallError, number, truth } from '../bus/client';
import type { Access } from '../bus/client';
import { begun, isOutdated, observed } from '../model/change';
import type { Change } from '../model/change';
import { isBusy } from '../model/errors';
import { hasAnswered } from '../model/fleet';
import type { MachineState } from '../model/fleet';
import { numberIn, wantedOf } from '../model/plan';
import { useEvents } from './machine';
import type { PlanState } from './machine';
import { usePage } from './page';

/** The number of vCPUs that the user selects, and the last change that the user requested. */
export interface Selection {
    /** The text of the field, or undefined if the user selects no other number than the present one. */
    draft: string | undefined;
    /** The selected number, or undefined if the text is no possible number. */
    count: number | undefined;
    change: Change | undefined;
    select: (draft: string | undefined) => void;
    apply: (plan: PlanState, withAgent: boolean, access: Access) => Promise<void>;
}

export function useSelection(machine: MachineState): Selection {
    const [draft, setDraft] = useState<string>();
    const { change, apply, clear } = useChange(machine);
    const { MaxVcpus: max, VcpusPerSlot: slot } = machine;
    const present = wantedOf(machine);
    const countOf = (text: string | undefined) => (text === undefined ? present : numberIn(text, slot, max, slot));
    const count = countOf(draft);
    // The machine has or will have the number, so that nothing is selected. Later changes of others are no selection.
    if (draft !== undefined && count === present && change?.result !== 'running') setDraft(undefined);
    const select = (next: string | undefined) => {
        setDraft(countOf(next) === present ? undefined : next);
        clear();
    };
    return { draft, count, change, select, apply };
}

/** Makes a request, and follows it with the signals of the machine. */
function useChange(machine: MachineState) {
    const { store } = usePage();
    const [change, setChange] = useState<Change>();
    useEvents(machine.path, event => {
        if (event !== 'changed') setChange(current => current && observed(current, event));
    });
    // The number can change again, by this or another client.
    if (change && hasAnswered(machine) && isOutdated(change, wantedOf(machine))) setChange(undefined);
    const finish = (result: Change['result']) => setChange(current => current && { ...current, result });
    const apply = async ({ question: { count, vcpus }, plan }: PlanState, withAgent: boolean, access: Access) => {
        setChange(begun(count, plan.added ?? [], plan.removed ?? []));
        // The service refuses if the plan that the user has seen is not the present one.
        const options = { current: number(vcpus), ...(withAgent && { 'guest-online': truth(true) }) };
        try {
            await store.machine(machine.path, 'SetVcpus', [count, options], access);
            finish('done');
        } catch (error) {
            const now = store.current().fleet.machines.get(machine.path)?.Vcpus;
            const isConflict = now !== undefined && now !== vcpus && isBusy(CallError.of(error).code);
            finish({ error: isConflict ? new CallError('conflict', '') : CallError.of(error) });
        }
    };
    /** Forgets a change that has ended. */
    const clear = () => setChange(current => (current?.result === 'running' ? current : undefined));
    return { change, apply, clear };
}
