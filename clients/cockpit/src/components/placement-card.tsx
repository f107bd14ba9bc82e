// Owns the card with the placement of the machine: the default host CPUs, the pins, and the limit of the CPU time.
import { useState } from 'react';

import { Button, CardBody, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, Label } from '@patternfly/react-core';

import { useCanChange, useCanTune } from '../hooks/machine';
import type { Tuning } from '../hooks/machine';
import type { MachineState } from '../model/fleet';
import { isSameList, percentOf } from '../model/vcpus';
import { _, format, namesOf } from '../text';
import { BandwidthDialog } from './bandwidth-dialog';
import { PageCard } from './page-card';
import { PinDialog } from './pin-dialog';

interface Props { machine: MachineState; tuning: Tuning | undefined; onChange: () => void }

export function PlacementCard({ machine, tuning, onChange }: Props) {
    const [dialog, setDialog] = useState<'affinity' | 'bandwidth'>();
    const canChange = useCanChange(machine);
    // A limit that is in force can always be removed.
    const permission = useCanTune(machine, 'bandwidth');
    const hasLimits = permission !== 'na' || machine.BandwidthQuotaUSec >= 0;
    const close = () => { setDialog(undefined); onChange(); };
    const differs = machine.Affinity && machine.EffectiveAffinity && !isSameList(machine.Affinity, machine.EffectiveAffinity);
    return (
        <PageCard title={_('Placement')}>
            <CardBody>
                <DescriptionList isHorizontal isFluid horizontalTermWidthModifier={{ default: '9rem' }}>
                    <Entry
                        title={_('Host CPUs')} edit={_('Change the host CPUs')} canEdit={canChange && tuning !== undefined}
                        onEdit={() => setDialog('affinity')}
                    >
                        {machine.EffectiveAffinity || machine.Affinity || _('all')}
                        {differs && <div><Label isCompact status="warning">{format(_('wanted: $0'), machine.Affinity)}</Label></div>}
                    </Entry>
                    <Entry
                        title={_('CPU time')} edit={_('Change the limit of the CPU time')} canEdit={canChange}
                        {...(hasLimits && { onEdit: () => setDialog('bandwidth') })}
                    >
                        <Limit machine={machine} />
                    </Entry>
                    <Entry title={_('Pins')}><Pins tuning={tuning} /></Entry>
                    <Entry title={_('Control groups')}>{placementText(machine.Placement)}</Entry>
                </DescriptionList>
            </CardBody>
            {dialog === 'affinity' && tuning && <PinDialog machine={machine} vcpus={[]} current={tuning.affinity ?? ''} onClose={close} />}
            {dialog === 'bandwidth' && <BandwidthDialog machine={machine} permission={permission} onClose={close} />}
        </PageCard>
    );
}

function placementText(placement: string): string {
    switch (placement) {
    case 'scope': return _('a scope of vcpud');
    case 'unit': return _('the unit of QEMU');
    default: return _('none; limits of the CPU time are not possible');
    }
}

interface EntryProps { title: string; children: React.ReactNode; onEdit?: () => void; edit?: string; canEdit?: boolean }

function Entry({ title, children, onEdit, edit, canEdit = true }: EntryProps) {
    return (
        <DescriptionListGroup>
            <DescriptionListTerm>{title}</DescriptionListTerm>
            <DescriptionListDescription>
                {children}
                {onEdit && (
                    <div>
                        <Button variant="link" isInline isAriaDisabled={!canEdit} onClick={onEdit} aria-label={edit ?? ''}>
                            {_('Change')}
                        </Button>
                    </div>
                )}
            </DescriptionListDescription>
        </DescriptionListGroup>
    );
}

function Limit({ machine }: { machine: MachineState }) {
    const wanted = percentOf({ periodUsec: machine.BandwidthPeriodUSec, quotaUsec: machine.BandwidthQuotaUSec });
    const actual = percentOf({
        periodUsec: machine.EffectiveBandwidthPeriodUSec, quotaUsec: machine.EffectiveBandwidthQuotaUSec,
    });
    const language = cockpit.language.replace('_', '-');
    const words = (share: number | undefined) =>
        (share === undefined ? _('no limit') : format(_('$0 % of a host CPU for each vCPU'), share.toLocaleString(language)));
    return (
        <>
            {words(actual)}
            {wanted !== actual && <div><Label isCompact status="warning">{format(_('wanted: $0'), words(wanted))}</Label></div>}
        </>
    );
}

function Pins({ tuning }: { tuning: Tuning | undefined }) {
    if (!tuning) return <>{'–'}</>;
    const pins = tuning.pins ?? [];
    if (pins.length === 0) return <>{_('none')}</>;
    const byCpus = new Map<string, number[]>();
    for (const [vcpu, cpus] of pins) byCpus.set(cpus, [...byCpus.get(cpus) ?? [], vcpu]);
    return (
        <ul className="vcpud-plain-list">
            {[...byCpus].map(([cpus, vcpus]) =>
                <li key={cpus}>{format(_('$0: host CPUs $1'), namesOf(vcpus), cpus)}</li>)}
        </ul>
    );
}
