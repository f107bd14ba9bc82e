// Owns the dialog that limits the CPU time of each vCPU of a machine.
import { useState } from 'react';

import { Checkbox, FormGroup, FormHelperText, HelperText, HelperTextItem, NumberInput } from '@patternfly/react-core';

import { useCall, usePage } from '../hooks/page';
import type { MachineState } from '../model/fleet';
import { bandwidthFor, percentOf } from '../model/vcpus';
import { _ } from '../text';
import { CallDialog } from './call-dialog';

/** The period of the kernel's default, in microseconds. */
const PERIOD = 100_000;

interface Props { machine: MachineState; onClose: () => void }

export function BandwidthDialog({ machine, onClose }: Props) {
    const { store } = usePage();
    const periodUsec = machine.BandwidthPeriodUSec || PERIOD;
    const current = percentOf({ periodUsec, quotaUsec: machine.BandwidthQuotaUSec });
    const [isLimited, setLimited] = useState(current !== undefined);
    const [percent, setPercent] = useState(current ?? 100);
    const isValid = !isLimited || (percent >= 1 && percent <= 1000);
    const call = useCall(access => {
        const limit = bandwidthFor(isLimited ? percent : undefined, periodUsec);
        return store.machine(machine.path, 'SetBandwidth', [limit.periodUsec, limit.quotaUsec, {}], access);
    });
    return (
        <CallDialog
            id="bandwidth" title={_('Limit of the CPU time of each vCPU')} failure={_('The limit is not changed')}
            call={call} isValid={isValid} onClose={onClose}
        >
            <Checkbox
                id="bandwidth-limited" label={_('Limit the CPU time')} isChecked={isLimited}
                onChange={(_event, checked) => setLimited(checked)}
            />
            {isLimited && <ShareInput percent={percent} isValid={isValid} onChange={setPercent} />}
        </CallDialog>
    );
}

interface ShareInputProps { percent: number; isValid: boolean; onChange: (percent: number) => void }

function ShareInput({ percent, isValid, onChange }: ShareInputProps) {
    return (
        <FormGroup label={_('Share of a host CPU')} fieldId="bandwidth-share">
            <NumberInput
                value={percent} min={1} max={1000} unit="%" inputAriaLabel={_('Share of a host CPU')}
                minusBtnAriaLabel={_('Fewer')} plusBtnAriaLabel={_('More')} widthChars={5}
                inputProps={{ id: 'bandwidth-share' }}
                onMinus={() => onChange(percent - 5)} onPlus={() => onChange(percent + 5)}
                onChange={event => onChange(Number(event.currentTarget.value))}
            />
            {!isValid && (
                <FormHelperText>
                    <HelperText><HelperTextItem variant="error">{_('Enter a number from 1 to 1000.')}</HelperTextItem></HelperText>
                </FormHelperText>
            )}
        </FormGroup>
    );
}
