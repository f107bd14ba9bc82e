// Owns the numbers that the user can select. Pure.
import type { MachineState } from './fleet';

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
