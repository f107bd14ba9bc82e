// Owns the small parts that several cards use: the begin of a view, facts, the state of a machine, and alerts about errors.
import { useEffect, useRef } from 'react';
import type { ReactNode } from 'react';

import { Alert, AlertActionCloseButton, AlertActionLink, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, Label } from '@patternfly/react-core';
import type { DescriptionListProps } from '@patternfly/react-core';

import { CallError } from '../bus/client';
import { useIsReady } from '../hooks/page';
import type { Call } from '../hooks/page';
import { adviceFor, isDenied, isProblem } from '../model/errors';
import type { Direction } from '../model/errors';
import type { MachineState } from '../model/fleet';
import { _, format } from '../text';

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

/** The begin of a view, such as its title. It takes the focus that the link to the view had. */
export function ViewBegin({ children }: { children: ReactNode }) {
    const begin = useRef<HTMLDivElement>(null);
    useEffect(() => { if (document.activeElement === document.body) begin.current?.focus(); }, []);
    return <div ref={begin} tabIndex={-1}>{children}</div>;
}

/** The state of a machine. It has no colour if it is the last known one. */
export function StateLabel({ machine }: { machine: MachineState }) {
    const isReady = useIsReady();
    if (!isReady) return <Label isCompact variant="outline">{format(_('last known: $0'), stateText(machine.State))}</Label>;
    const status = { running: 'success', disconnected: 'danger' } as const;
    const known = status[machine.State as keyof typeof status] ?? 'warning';
    return <Label isCompact variant="outline" status={known}>{stateText(machine.State)}</Label>;
}

/** A term and its value. Without a value, it is not shown. */
export type Fact = [string, string | number | false | undefined];

/** A list of facts, in as many columns as DescriptionList can have at a width. */
export function FactList({ facts, columns }: { facts: Fact[]; columns: DescriptionListProps['columnModifier'] }) {
    return (
        <DescriptionList isCompact columnModifier={columns}>
            {facts.map(([title, value]) => value !== undefined && value !== false && value !== '' && (
                <DescriptionListGroup key={title}>
                    <DescriptionListTerm>{title}</DescriptionListTerm>
                    <DescriptionListDescription className="vcpud-break">{value}</DescriptionListDescription>
                </DescriptionListGroup>
            ))}
        </DescriptionList>
    );
}

interface ErrorAlertProps {
    title: string; error: CallError; call?: Call; direction?: Direction;
    onRetry?: ((access: 'administrator') => void) | undefined;
}

/** An error of a call, with advice. If polkit denied the call, the user can repeat it as administrator. */
export function ErrorAlert({ title, error, call, direction, onRetry }: ErrorAlertProps) {
    const advice = adviceFor(error.code, direction);
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
