// Owns the card that changes the number of vCPUs: the slider, the plan, the request and its progress.
import { useState } from 'react';

import { Alert, Button, Card, CardBody, CardFooter, CardTitle, Checkbox, NumberInput, Slider, Stack } from '@patternfly/react-core';

import { number, truth } from '../bus/client';
import type { Access } from '../bus/client';
import { usePlan, useEvents } from '../hooks/machine';
import type { PlanState } from '../hooks/machine';
import { usePage } from '../hooks/page';
import { begun, observed } from '../model/change';
import type { Change } from '../model/change';
import { isConnected } from '../model/fleet';
import type { MachineState } from '../model/fleet';
import { nearestCount, wantedOf } from '../model/plan';
import { CallError } from '../bus/client';
import { _, countOf, format } from '../text';
import { PlanView } from './plan-view';
import { PendingNotice, Progress } from './progress';

export function ChangeCard({ machine }: { machine: MachineState }) {
    const [wanted, setWanted] = useState<number>();
    const [withAgent, setWithAgent] = useState(false);
    const count = wanted ?? wantedOf(machine);
    const plan = usePlan(machine, count);
    const { change, apply, clear } = useChange(machine, () => setWanted(undefined));
    const select = (next: number | undefined) => { setWanted(next); clear(); };
    const request = (access: Access) => void apply(count, plan, withAgent, access);
    const isChange = count !== wantedOf(machine);
    return (
        <Card>
            <CardTitle component="h2">{_('Number of vCPUs')}</CardTitle>
            <CardBody>
                <Stack hasGutter>
                    <CountInput machine={machine} count={count} onChange={select} />
                    <PendingNotice machine={machine} />
                    {isChange && <PlanView state={plan} onSelect={select} />}
                    {isChange && (
                        <Checkbox
                            id="guest-agent" isChecked={withAgent} onChange={(_event, checked) => setWithAgent(checked)}
                            label={_('Use the guest agent')}
                            description={_('The agent brings added vCPUs online in the guest, and takes vCPUs offline before their removal.')}
                        />
                    )}
                    <Progress change={change} onRetry={request} />
                </Stack>
            </CardBody>
            <CardFooter>
                <ApplyButton
                    machine={machine} count={count} plan={plan} isChange={isChange}
                    isBusy={change?.result === 'running'} onApply={request}
                />
                {wanted !== undefined && isChange && (
                    <Button variant="link" onClick={() => select(undefined)}>{_('Cancel')}</Button>
                )}
            </CardFooter>
        </Card>
    );
}

interface CountInputProps { machine: MachineState; count: number; onChange: (count: number) => void }

function CountInput({ machine, count, onChange }: CountInputProps) {
    const { MaxVcpus: max, VcpusPerSlot: slot } = machine;
    const isDisabled = !isConnected(machine) || machine.HotplugMethod === 'none';
    // A text that is not a possible number counts when the user has left the field.
    const [draft, setDraft] = useState<string>();
    const select = (value: number) => { setDraft(undefined); onChange(nearestCount(value, max, slot)); };
    const type = (text: string) => {
        if (text === String(nearestCount(Number(text), max, slot))) select(Number(text));
        else setDraft(text);
    };
    const leave = () => { if (draft !== undefined) select(draft === '' ? count : Number(draft)); };
    return (
        <>
            <div className="vcpud-count">
                <Slider
                    value={count} min={slot} max={max} step={slot} isDisabled={isDisabled}
                    onChange={(_event, value) => select(value)}
                    thumbAriaLabel={_('Number of vCPUs')} showTicks={false}
                />
                <NumberInput
                    // The input takes a text.
                    value={(draft ?? count) as number} min={slot} max={max} isDisabled={isDisabled} widthChars={4}
                    inputAriaLabel={_('Number of vCPUs')} minusBtnAriaLabel={_('Fewer')} plusBtnAriaLabel={_('More')}
                    onMinus={() => select(count - slot)} onPlus={() => select(count + slot)}
                    onChange={event => type(event.currentTarget.value)} onBlur={leave}
                    inputProps={{ onKeyDown: (event: React.KeyboardEvent) => { if (event.key === 'Enter') leave(); } }}
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

interface ApplyButtonProps {
    machine: MachineState; count: number; plan: PlanState | undefined; isChange: boolean; isBusy: boolean;
    onApply: (access: Access) => void;
}

/** If polkit does not authorize the user, the button uses administrative access, and its text says so. */
function ApplyButton({ machine, count, plan, isChange, isBusy, onApply }: ApplyButtonProps) {
    const isPossible = isChange && plan?.plan.added !== undefined && isConnected(machine);
    const isAuthorized = plan?.permission !== 'no' && plan?.permission !== 'challenge';
    const title = isAuthorized ? _('Set to $0') : _('Set to $0 with administrative access');
    return (
        <Button
            variant="primary" isDisabled={!isPossible || isBusy} isLoading={isBusy}
            onClick={() => onApply(isAuthorized ? 'user' : 'administrator')}
        >
            {format(title, countOf(count))}
        </Button>
    );
}

/** Makes a request, and follows it with the signals of the machine. */
function useChange(machine: MachineState, onAccepted: () => void) {
    const { store } = usePage();
    const [change, setChange] = useState<Change>();
    useEvents(machine.path, event => {
        if (event !== 'changed') setChange(current => current && observed(current, event));
    });
    const finish = (result: Change['result']) => setChange(current => current && { ...current, result });
    const apply = async (count: number, plan: PlanState | undefined, withAgent: boolean, access: Access) => {
        setChange(begun(count, plan?.plan.added ?? [], plan?.plan.removed ?? []));
        const options = { current: number(machine.Vcpus), ...(withAgent && { 'guest-online': truth(true) }) };
        try {
            await store.machine(machine.path, 'SetVcpus', [count, options], access);
            finish('done');
            onAccepted();
        } catch (error) {
            finish({ error: CallError.of(error) });
        }
    };
    /** Forgets a change that has ended. */
    const clear = () => setChange(current => (current?.result === 'running' ? current : undefined));
    return { change, apply, clear };
}
