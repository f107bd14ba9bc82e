// Owns the small parts that several cards use: the state of a machine, and alerts about errors.
import { Alert, AlertActionCloseButton, AlertActionLink, Label } from '@patternfly/react-core';

import { CallError } from '../bus/client';
import type { Call } from '../hooks/page';
import { adviceFor, isDenied, isProblem } from '../model/errors';
import type { MachineState } from '../model/fleet';
import { _ } from '../text';

/** Returns the run state of QEMU in words. The other states have the word of QEMU. */
function stateText(state: string): string {
    switch (state) {
    case 'running': return _('Running');
    case 'paused': return _('Paused');
    case 'shutdown': return _('Shut down');
    case 'prelaunch': return _('Not started yet');
    case 'disconnected': return _('Disconnected');
    default: return state;
    }
}

export function StateLabel({ machine }: { machine: MachineState }) {
    const status = { running: 'success', disconnected: 'danger' } as const;
    const known = status[machine.State as keyof typeof status] ?? 'warning';
    return <Label isCompact variant="outline" status={known}>{stateText(machine.State)}</Label>;
}

interface ErrorAlertProps { title: string; error: CallError; call?: Call; onRetry?: (access: 'administrator') => void }

/** An error of a call, with advice. If polkit denied the call, the user can repeat it as administrator. */
export function ErrorAlert({ title, error, call, onRetry }: ErrorAlertProps) {
    const advice = adviceFor(error.code);
    const actionLinks = isDenied(error.code) && onRetry && (
        <AlertActionLink onClick={() => onRetry('administrator')}>{_('Use administrative access')}</AlertActionLink>
    );
    const text = isProblem(error.code) && advice ? '' : error.message;
    return (
        <Alert
            isInline isLiveRegion variant="danger" title={title} actionLinks={actionLinks}
            actionClose={call && <AlertActionCloseButton onClose={call.clear} />}
        >
            {text && <p>{text}</p>}
            {advice && <p>{advice}</p>}
        </Alert>
    );
}
