// Owns the numbers that the user can select, and the words about plans. Pure.
import type { Machine } from '../generated/interfaces';
import { N_, _ } from '../text';
import type { MachineState } from './fleet';

export type Plan = Machine['keys']['Plan'];

const REASONS: Record<string, string> = {
    'below-minimum': N_('A machine has at least 1 vCPU.'),
    'above-maximum': N_('The number is above the maximum of the machine.'),
    'part-of-slot': N_('vCPUs change in groups, and the number needs a part of a group.'),
    'removal-pending': N_('The removal of these vCPUs is still pending, so that they are not free.'),
    'boot-vcpu': N_('QEMU does not remove the boot CPU.'),
    'no-unplug': N_('QEMU can add vCPUs to this machine, and cannot remove them.'),
    'no-hotplug': N_('QEMU cannot add or remove vCPUs of this machine.'),
    'tcg-limit': N_('QEMU without KVM would abort, because removed vCPUs count too. A restart of the machine makes additions possible again.'),
    'confidential-guest': N_('QEMU would exit, because the memory of the guest is encrypted (SEV, TDX).'),
    'disconnected': N_('vcpud has no connection to QEMU.'),
};

const WARNINGS: Record<string, string> = {
    'not-started': N_('The guest has not started all vCPUs. It may be booting, and may not notice a vCPU that is added now.'),
    'not-running': N_('The guest does not run, so that it cannot start a vCPU that is added now.'),
};

/** Returns why a plan is not possible. A code of a later version has the text of the service. */
export function planReason(plan: Plan): string {
    const known = REASONS[plan['reason-code'] ?? ''];
    return known ? _(known) : plan.reason ?? '';
}

/** Returns the warnings of a plan. A code of a later version has the text of the service. */
export function planWarnings(plan: Plan): string[] {
    return (plan.warnings ?? []).map((text, index) => {
        const known = WARNINGS[plan['warning-codes']?.[index] ?? ''];
        return known ? _(known) : text;
    });
}

/** A question for a plan: the number, and the vCPUs that the machine had. */
export interface Question { count: number; vcpus: number; pending: readonly number[] }

/** Returns the question for the plan of a number of vCPUs now. */
export const questionFor = ({ Vcpus, PendingRemovals }: MachineState, count: number): Question =>
    ({ count, vcpus: Vcpus, pending: PendingRemovals });

/** Returns whether two questions have the same answer, so that the machine has not changed since the first one. */
export function isSameQuestion(a: Question, b: Question): boolean {
    const pending = new Set(a.pending);
    return a.count === b.count && a.vcpus === b.vcpus
        && pending.size === b.pending.length && b.pending.every(vcpu => pending.has(vcpu));
}

/** Returns the number of vCPUs that the machine has or will have: those whose removal is pending do not count. */
export const wantedOf = (machine: MachineState): number => machine.Vcpus - machine.PendingRemovals.length;

/** Returns the number that a text is, or undefined if it is none from `min` to `max` in whole steps. */
export function numberIn(text: string, min: number, max: number, step?: number): number | undefined {
    const value = Number(text);
    const isPossible = text.trim() !== '' && value >= min && value <= max && (step === undefined || value % step === 0);
    return isPossible ? value : undefined;
}

/** Returns the possible number that is nearest to a value: whole slots, at least one. */
export function nearestCount(value: number, max: number, slot: number): number {
    if (!Number.isFinite(value)) return slot;
    return Math.min(Math.max(Math.round(value / slot) * slot, slot), max);
}

/** Returns the number that a key of a slider selects, or undefined for any other key. */
export function countOfKey(key: string, count: number, max: number, slot: number, isRightToLeft = false): number | undefined {
    const page = Math.max(max / 10, slot);
    const right = isRightToLeft ? -slot : slot;
    const steps: Record<string, number> = {
        Home: -max, End: max, PageUp: page, PageDown: -page,
        ArrowUp: slot, ArrowDown: -slot, ArrowRight: right, ArrowLeft: -right,
    };
    const step = steps[key];
    return step === undefined ? undefined : nearestCount(count + step, max, slot);
}
