// Owns the words about automatic scaling: from the codes of the reasons to explanations. Pure.
import type { Autoscale } from '../generated/interfaces';
import { N_, _ } from '../text';
import { numberIn } from './plan';

export type Explanation = Autoscale['keys']['List'] & Autoscale['keys']['Explain'];

const REASONS: Record<string, string> = {
    'saturated': N_('The vCPUs are so busy that the demand is unknown. vCPUs are added.'),
    'busy': N_('The load is above the target. vCPUs are added.'),
    'probe': N_('A few vCPUs are added, to find out whether the host has free CPUs again.'),
    'below-min': N_('Fewer vCPUs than the minimum are present. vCPUs are added.'),
    'idle': N_('The load of the last time needs fewer vCPUs. vCPUs are removed.'),
    'contended': N_('The host did not run all of the busy vCPUs for some time. vCPUs are removed.'),
    'never-started': N_('The guest does not start these vCPUs. They are removed.'),
    'above-max': N_('More vCPUs than the maximum are present. vCPUs are removed.'),
    'in-band': N_('The load fits the number of vCPUs.'),
    'at-max': N_('The load needs more vCPUs than the maximum.'),
    'at-cap': N_('The load needs more vCPUs than the share of the machine on the host.'),
    'at-min': N_('The load needs fewer vCPUs than the machine keeps.'),
    'pinned': N_('The load needs fewer vCPUs, and one of the others has a pin.'),
    'slot-size': N_('A whole slot of vCPUs does not fit within the minimum and the maximum.'),
    'steal': N_('The host does not supply the wanted CPU time.'),
    'contention-backoff': N_('vCPUs were removed because the host was busy, and the pause is not over.'),
    'failure-backoff': N_('A request failed, and the pause is not over.'),
    'hold': N_('Another caller set the number of vCPUs. It stays for some time.'),
    'requested': N_('A request is in progress.'),
    'removal-pending': N_('The guest has not released vCPUs yet.'),
    'not-started': N_('The guest has not started all vCPUs.'),
    'not-running': N_('The guest does not run.'),
    'no-data': N_('There is not enough data yet.'),
    'stale': N_('The last data is too old.'),
    'off': N_('Automatic scaling of this machine is off.'),
    'no-machine': N_('vcpud does not have this machine.'),
    'invalid-settings': N_('The settings are not valid for this machine.'),
};

/** Returns an explanation of the last decision. A code of a later version has the text of the service. */
export function reasonOf(explanation: Explanation): string {
    const known = REASONS[explanation['reason-code'] ?? ''];
    return known ? _(known) : explanation.reason ?? '';
}

export interface Limits { min: number; max: number }

/** Returns the limits that two texts are, or undefined if they are not possible for a machine. */
export function limitsOf(minimum: string, maximum: string, maxVcpus: number): Limits | undefined {
    const min = numberIn(minimum, 1, maxVcpus, 1);
    const max = numberIn(maximum, 1, maxVcpus, 1);
    return min !== undefined && max !== undefined && min <= max ? { min, max } : undefined;
}

/** Returns whether two texts are numbers in the wrong order. */
export const areReversed = (minimum: string, maximum: string): boolean => Number(minimum) > Number(maximum) && maximum.trim() !== '';
