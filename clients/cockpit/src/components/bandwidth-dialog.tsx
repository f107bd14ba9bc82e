// Owns the dialog that limits the CPU time of each vCPU of a machine.
import { useState } from 'react';

import { Checkbox, FormGroup } from '@patternfly/react-core';

import { useCall, usePage } from '../hooks/page';
import type { MachineState } from '../model/fleet';
import type { Permission } from '../model/permission';
import { numberIn } from '../model/plan';
import { bandwidthFor, percentOf } from '../model/vcpus';
import { _ } from '../text';
import { CallDialog } from './call-dialog';
import { NumberField } from './number-field';

/** The period of the kernel's default, in microseconds. */
const PERIOD = 100_000;

/** The least and the greatest limit, in percent. */
const SHARES = [1, 1000] as const;

interface Props { machine: MachineState; permission: Permission | undefined; onClose: () => void }

export function BandwidthDialog({ machine, permission, onClose }: Props) {
    const { store } = usePage();
    const periodUsec = machine.BandwidthPeriodUSec || PERIOD;
    const current = percentOf({ periodUsec, quotaUsec: machine.BandwidthQuotaUSec });
    const [isLimited, setLimited] = useState(current !== undefined);
    const [share, setShare] = useState(String(current ?? 100));
    const percent = numberIn(share, ...SHARES);
    const isValid = !isLimited || percent !== undefined;
    // An unchanged share is a rounded one.
    const isChanged = (isLimited ? percent : undefined) !== current;
    const call = useCall(async access => {
        if (!isChanged) return;
        const limit = bandwidthFor(isLimited ? percent : undefined, periodUsec);
        await store.machine(machine.path, 'SetBandwidth', [limit.periodUsec, limit.quotaUsec, {}], access);
    });
    return (
        <CallDialog
            id="bandwidth" title={_('Limit of the CPU time of each vCPU')} failure={_('The limit is not changed')}
            focus="#bandwidth-limited" call={call} permission={permission} isValid={isValid} onClose={onClose}
        >
            <Checkbox
                id="bandwidth-limited" label={_('Limit the CPU time')} isChecked={isLimited}
                onChange={(_event, checked) => setLimited(checked)}
            />
            {isLimited && (
                <FormGroup label={_('Share of a host CPU')} fieldId="bandwidth-share">
                    <NumberField
                        id="bandwidth-share" title={_('Share of a host CPU')} text={share} min={SHARES[0]} max={SHARES[1]} step={5}
                        unit="%" onChange={setShare}
                    />
                </FormGroup>
            )}
        </CallDialog>
    );
}
