// Owns the plan of a change: what it would add and remove, its warnings, or why it is not possible.
import { Alert, AlertActionLink, Spinner, Stack } from '@patternfly/react-core';

import type { PlanState } from '../hooks/machine';
import { adviceFor } from '../model/errors';
import { planReason, planWarnings } from '../model/plan';
import { _, countOf, format, namesOf } from '../text';
import { ErrorAlert } from './parts';

interface Props { state: PlanState | undefined; onSelect: (count: number) => void }

export function PlanView({ state, onSelect }: Props) {
    // A screen reader announces what changes in an element that was there before.
    return <div role="status" aria-label={_('Plan')}><Content state={state} onSelect={onSelect} /></div>;
}

function Content({ state, onSelect }: Props) {
    if (!state) return <Spinner size="md" aria-label={_('Reading the plan')} />;
    const { plan, error, permission } = state;
    if (error) return <ErrorAlert title={_('The plan cannot be read')} error={error} />;
    if (plan.error) return <NotPossible state={state} onSelect={onSelect} />;
    return (
        <Stack hasGutter>
            <div>
                {!!plan.added?.length && <p>{format(_('Adds $0.'), namesOf(plan.added))}</p>}
                {!!plan.removed?.length && (
                    <p>{format(_('Removes $0. The guest can refuse the removal.'), namesOf(plan.removed))}</p>
                )}
            </div>
            {planWarnings(plan).map(text => (
                <Alert key={text} isInline variant="warning" title={_('The guest may not notice the change')}>{text}</Alert>
            ))}
            {permission === 'challenge' && (
                <Alert isInline variant="info" title={_('This change needs administrative access')}>
                    {_('With the administrative access of Cockpit, the requester is root.')}
                </Alert>
            )}
            {permission === 'no' && (
                <Alert isInline variant="warning" title={_('Your account is not authorized for this change')}>
                    {_('polkit denies it. Select another number, use administrative access, or ask an administrator for a rule.')}
                </Alert>
            )}
        </Stack>
    );
}

/** A change that is not possible, with the nearest numbers that are. */
function NotPossible({ state, onSelect }: { state: PlanState; onSelect: (count: number) => void }) {
    const { plan, question: { count } } = state;
    const actionLinks = plan.nearest?.map(nearest => (
        <AlertActionLink key={nearest} onClick={() => onSelect(nearest)}>
            {format(_('Select $0'), countOf(nearest))}
        </AlertActionLink>
    ));
    return (
        <Alert
            isInline isLiveRegion variant="warning" actionLinks={actionLinks}
            title={format(_('The machine cannot have $0 now'), countOf(count))}
        >
            <p>{planReason(plan)}</p>
            {!plan.nearest?.length && <p>{adviceFor(plan.error ?? '')}</p>}
        </Alert>
    );
}
