// Owns the progress of a change, its end, and the notice about pending removals.
import { useEffect, useState } from 'react';

import { Alert, Progress as Bar, ProgressMeasureLocation, ProgressSize, Stack } from '@patternfly/react-core';

import type { Access } from '../bus/client';
import { useCanChange } from '../hooks/machine';
import { phaseOf } from '../model/change';
import type { Change } from '../model/change';
import { explainRefusal, isInterrupted } from '../model/errors';
import type { MachineState } from '../model/fleet';
import { wantedOf } from '../model/plan';
import { _, countOf, format, namesOf, ngettext } from '../text';
import { ErrorAlert } from './parts';

interface Props {
    machine: MachineState; change: Change | undefined;
    /** Makes the request again. It is undefined while there is no plan. */
    onRetry: ((access: Access) => void) | undefined;
}

export function Progress({ machine, change, onRetry }: Props) {
    if (!change) return null;
    const phase = phaseOf(change);
    return (
        <div aria-live="polite" className="vcpud-progress" data-phase={phase}>
            <Stack hasGutter>
                {phase === 'complete' && (
                    <Alert isInline variant="success" title={format(_('The machine has $0'), countOf(change.target))} />
                )}
                {phase === 'starting' && <NotStarted key={change.started.size} change={change} />}
                {phase !== 'complete' && phase !== 'failed' && <Bars change={change} />}
                <Failure machine={machine} change={change} onRetry={onRetry} />
            </Stack>
        </div>
    );
}

function Bars({ change }: { change: Change }) {
    const { expected, added, started, unknown, removed } = change;
    const startable = expected.added.length - unknown.size;
    return (
        <>
            {expected.added.length > 0 && (
                <>
                    <ProgressBar title={_('Added')} value={added.size} max={expected.added.length} />
                    {startable > 0 && <ProgressBar title={_('Started by the guest')} value={started.size} max={startable} />}
                </>
            )}
            {expected.removed.length > 0 &&
                <ProgressBar title={_('Removed')} value={removed.size} max={expected.removed.length} />}
        </>
    );
}

function ProgressBar({ title, value, max }: { title: string; value: number; max: number }) {
    return (
        <Bar
            title={title} value={value} max={max} size={ProgressSize.sm} measureLocation={ProgressMeasureLocation.top}
            label={format(_('$0 of $1'), value, max)} valueText={format(_('$0 of $1'), value, max)}
        />
    );
}

/** How long a guest can take to start one more vCPU before the page gives advice, in seconds. */
const USUAL_START = 10;

/** vCPUs are added, and the guest has not started all of them. */
function NotStarted({ change }: { change: Change }) {
    const isLate = useIsAfter(USUAL_START);
    if (!isLate) return null;
    const missing = change.expected.added.filter(vcpu => !change.started.has(vcpu) && !change.unknown.has(vcpu));
    return (
        <Alert isInline variant="info" title={format(_('The guest has not started $0 yet'), namesOf(missing))}>
            {_('The vCPUs are added. If the guest does not start them, bring them online in the guest.')}
        </Alert>
    );
}

/** Returns whether the component has been shown for some seconds. */
function useIsAfter(seconds: number): boolean {
    const [isAfter, setAfter] = useState(false);
    useEffect(() => {
        const timer = window.setTimeout(() => setAfter(true), seconds * 1000);
        return () => window.clearTimeout(timer);
    }, [seconds]);
    return isAfter;
}

type FailureProps = Props & { change: Change };

function Failure({ machine, change, onRetry }: FailureProps) {
    const { result, refused } = change;
    if (result === 'running' || result === 'done' || phaseOf(change) !== 'failed') return null;
    if (refused.size > 0) return <Refusals change={change} />;
    if (isInterrupted(result.error.code)) return <Interruption machine={machine} target={change.target} />;
    const title = format(_('The change to $0 failed'), countOf(change.target));
    const direction = change.expected.added.length > 0 ? 'add' : 'remove';
    return <ErrorAlert title={title} error={result.error} direction={direction} onRetry={onRetry} />;
}

/** The service ended during the change. What the machine has is known when the service and QEMU answer again. */
function Interruption({ machine, target }: { machine: MachineState; target: number }) {
    const isKnown = useCanChange(machine);
    return (
        <Alert isInline isLiveRegion variant="danger" title={format(_('The change to $0 was interrupted'), countOf(target))}>
            <p>{_('vcpud ended, or the connection to it, before the change was complete.')}</p>
            {isKnown && <p>{format(_('The machine has $0 now.'), countOf(wantedOf(machine)))}</p>}
        </Alert>
    );
}

function Refusals({ change }: { change: Change }) {
    const refused = [...change.refused];
    // The guest or QEMU refused.
    const title = format(ngettext('$0 was not released', '$0 were not released', refused.length), namesOf([...change.refused.keys()]));
    return (
        <Alert isInline isLiveRegion variant="danger" title={title}>
            <ul className="vcpud-plain-list" aria-label={_('Refusals')}>
                {refused.map(([vcpu, refusal]) => <li key={vcpu}>{namesOf([vcpu])}: {explainRefusal(refusal)}</li>)}
            </ul>
            {change.removed.size > 0 && <p>{format(_('Removed: $0.'), namesOf([...change.removed]))}</p>}
        </Alert>
    );
}

/** Removals that the guest has not answered, of any requester. */
export function PendingNotice({ machine }: { machine: MachineState }) {
    const pending = machine.PendingRemovals;
    if (pending.length === 0) return null;
    const cause = machine.State === 'running'
        ? _('The guest has not answered yet. QEMU has no command that cancels the removal. It ends when the guest releases the vCPUs or refuses.')
        : _('The guest does not run, so that it cannot answer. The removal goes on when the guest runs again.');
    return (
        <Alert isInline isLiveRegion variant="info" title={format(_('The removal of $0 is pending'), namesOf(pending))}>
            {cause}
        </Alert>
    );
}
