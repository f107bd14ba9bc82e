// Owns the card that changes the number of vCPUs: the slider, the plan, the request and its progress.
import { useState } from 'react';
import type { KeyboardEvent } from 'react';

import { Alert, Button, CardBody, CardFooter, Checkbox, Slider, Stack } from '@patternfly/react-core';

import type { Access } from '../bus/client';
import type { Selection } from '../hooks/change';
import { useCanChange, usePlan } from '../hooks/machine';
import type { PlanState } from '../hooks/machine';
import { informed } from '../model/change';
import type { MachineState } from '../model/fleet';
import { needsAdministrator } from '../model/permission';
import { countOfKey, nearestCount, wantedOf } from '../model/plan';
import type { Vcpu } from '../model/vcpus';
import { _, countOf, format } from '../text';
import { NumberField } from './number-field';
import { PageCard } from './page-card';
import { FactList } from './parts';
import type { Fact } from './parts';
import { PlanView } from './plan-view';
import { PendingNotice, Progress } from './progress';

interface Props { machine: MachineState; selection: Selection; vcpus: Vcpu[] | undefined }

export function ChangeCard({ machine, selection, vcpus }: Props) {
    const { draft, count, change, select, apply } = selection;
    const [withAgent, setWithAgent] = useState(false);
    const present = wantedOf(machine);
    const plan = usePlan(machine, count ?? present);
    const isChange = count !== undefined && count !== present;
    const possible = isChange && plan?.plan.added ? plan : undefined;
    const request = possible && ((access: Access) => void apply(possible, withAgent, access));
    return (
        <PageCard title={_('Number of vCPUs')}>
            <CardBody>
                <Stack hasGutter>
                    <CountInput machine={machine} text={draft ?? String(present)} count={count ?? present} onChange={select} />
                    <Facts machine={machine} />
                    <PendingNotice machine={machine} />
                    {isChange && <PlanView state={plan} onSelect={nearest => select(String(nearest))} />}
                    {possible && (
                        <Checkbox
                            id="guest-agent" isChecked={withAgent} onChange={(_event, checked) => setWithAgent(checked)}
                            label={_('Use the guest agent')}
                            description={_('The agent brings added vCPUs online in the guest, and takes vCPUs offline before their removal.')}
                        />
                    )}
                    <Progress machine={machine} change={change && informed(change, vcpus ?? [])} onRetry={request} />
                </Stack>
            </CardBody>
            <CardFooter>
                <ApplyButton
                    machine={machine} count={count ?? present} plan={possible}
                    isBusy={change?.result === 'running'} onApply={request}
                />
                {draft !== undefined && count !== present && (
                    <Button variant="link" onClick={() => select(undefined)}>{_('Cancel')}</Button>
                )}
            </CardFooter>
        </PageCard>
    );
}

interface CountInputProps { machine: MachineState; text: string; count: number; onChange: (text: string) => void }

function CountInput({ machine, text, count, onChange }: CountInputProps) {
    const { MaxVcpus: max, VcpusPerSlot: slot } = machine;
    const canChange = useCanChange(machine);
    const isDisabled = !canChange || machine.HotplugMethod === 'none';
    /** PatternFly's slider has two keys, also with Alt, and loses a change that comes soon after another one. */
    const press = (event: KeyboardEvent<HTMLElement>) => {
        const isRightToLeft = getComputedStyle(event.currentTarget).direction === 'rtl';
        const selected = countOfKey(event.key, count, max, slot, isRightToLeft);
        if (selected === undefined) return;
        event.stopPropagation();
        if (isDisabled || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        onChange(String(selected));
    };
    return (
        <>
            <div className="vcpud-count">
                {max > slot && (
                    <Slider
                        value={count} min={slot} max={max} step={slot} isDisabled={isDisabled} showTicks={false}
                        onChange={(_event, value) => onChange(String(nearestCount(value, max, slot)))}
                        onKeyDownCapture={press}
                        thumbAriaLabel={_('Number of vCPUs')}
                    />
                )}
                <NumberField
                    id="count" title={_('Number of vCPUs')} text={text} min={slot} max={max} step={slot}
                    multiple={slot} isDisabled={isDisabled} onChange={onChange}
                />
            </div>
            {machine.HotplugMethod === 'none' && (
                <Alert isInline variant="info" title={_('The number of vCPUs of this machine cannot change')}>
                    {_('Its machine type has no support for hot-plug of CPUs, or QEMU was started without maxcpus.')}
                </Alert>
            )}
            {slot > 1 && <div className="vcpud-note">{format(_('vCPUs change in groups of $0.'), slot)}</div>}
        </>
    );
}

/** What the machine has now, whatever the user selects. */
function Facts({ machine }: { machine: MachineState }) {
    const facts: Fact[] = [
        [_('Present'), machine.Vcpus],
        [_('Started'), machine.StartedVcpus],
        [_('Maximum'), machine.MaxVcpus],
    ];
    return <FactList facts={facts} columns={{ default: '3Col' }} />;
}

interface ApplyButtonProps {
    machine: MachineState; count: number; /** The plan of a change that is possible. */
    plan: PlanState | undefined; isBusy: boolean;
    onApply: ((access: Access) => void) | undefined;
}

/** If polkit does not authorize the user, the button uses administrative access, and its text says so. */
function ApplyButton({ machine, count, plan, isBusy, onApply }: ApplyButtonProps) {
    const isPossible = useCanChange(machine) && plan !== undefined;
    const isAuthorized = !needsAdministrator(plan?.permission);
    const title = isAuthorized ? _('Set to $0') : _('Set to $0 with administrative access');
    return (
        <Button
            variant="primary" isAriaDisabled={!isPossible || isBusy} isLoading={isBusy}
            onClick={() => onApply?.(isAuthorized ? 'user' : 'administrator')}
        >
            {format(title, countOf(count))}
        </Button>
    );
}
