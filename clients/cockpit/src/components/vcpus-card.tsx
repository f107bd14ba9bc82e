// Owns the table of vCPUs: their state, their use, and the values in force against the desired ones.
import { useState } from 'react';

import { Button, CardBody, Checkbox, EmptyState, Label, Spinner, Switch } from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';

import { useCanChange } from '../hooks/machine';
import type { Tuning } from '../hooks/machine';
import { useHistory } from '../hooks/page';
import type { MachineState } from '../model/fleet';
import { percent } from '../model/usage';
import type { VcpuUse } from '../model/usage';
import { affinityOf, commonPin, presenceOf, schedulerOf } from '../model/vcpus';
import type { Setting, Vcpu } from '../model/vcpus';
import { _, format, namesOf } from '../text';
import { PageCard } from './page-card';
import { PinDialog } from './pin-dialog';

interface Props {
    machine: MachineState; vcpus: Vcpu[] | undefined; tuning: Tuning | undefined; onChange: () => void;
}

export function VcpusCard({ machine, vcpus, tuning, onChange }: Props) {
    const [showsFree, setShowsFree] = useState(false);
    const [selected, setSelected] = useState<ReadonlySet<number>>(new Set());
    // Without vCPUs, PinVcpus() sets the default of the machine. Therefore, the list of an open dialog does not change.
    const [pinned, setPinned] = useState<{ vcpus: number[]; current: string | undefined }>();
    const canChange = useCanChange(machine);
    const rows = vcpus?.filter(vcpu => showsFree || vcpu.present);
    const chosen = rows?.filter(vcpu => selected.has(vcpu.id ?? 0)).map(vcpu => vcpu.id ?? 0) ?? [];
    const select = (ids: number[], isSelected: boolean) => setSelected(current => {
        const next = new Set(current);
        ids.forEach(id => (isSelected ? next.add(id) : next.delete(id)));
        return next;
    });
    const canPin = canChange && tuning !== undefined && chosen.length > 0;
    const pin = () => tuning && setPinned({ vcpus: chosen, current: commonPin(tuning.pins ?? [], chosen) });
    const actions = (
        <div className="vcpud-actions">
            <Switch label={_('Free vCPUs')} isChecked={showsFree} onChange={(_event, on) => setShowsFree(on)} id="free" />
            <Button variant="secondary" isAriaDisabled={!canPin} onClick={pin}>
                {_('Pin selected')}
            </Button>
        </div>
    );
    return (
        <PageCard title={_('vCPUs')} actions={actions}>
            {rows ? <div className="vcpud-rows"><VcpuTable machine={machine} rows={rows} selected={selected} onSelect={select} /></div>
                : <CardBody><EmptyState titleText={_('Reading the vCPUs')} headingLevel="h3" icon={Spinner} variant="sm" /></CardBody>}
            {pinned && (
                <PinDialog
                    machine={machine} vcpus={pinned.vcpus} current={pinned.current}
                    onClose={() => { setPinned(undefined); onChange(); }}
                />
            )}
        </PageCard>
    );
}

interface TableProps {
    machine: MachineState; rows: Vcpu[]; selected: ReadonlySet<number>;
    onSelect: (ids: number[], isSelected: boolean) => void;
}

function VcpuTable({ machine, rows, selected, onSelect }: TableProps) {
    const use = useHistory(machine.path)?.vcpus;
    const all = rows.map(row => row.id ?? 0);
    return (
        <Table variant="compact" isStickyHeader gridBreakPoint="grid-lg" aria-label={_('vCPUs')}>
            <Thead>
                <Tr>
                    <Th modifier="fitContent">
                        <Checkbox
                            id="select-all" aria-label={_('Select all vCPUs')}
                            isChecked={all.length > 0 && all.every(id => selected.has(id))}
                            onChange={(_event, isSelected) => onSelect(all, isSelected)}
                        />
                    </Th>
                    <Th>{_('vCPU')}</Th>
                    <Th>{_('State')}</Th>
                    <Th>{_('Use')}</Th>
                    <Th>{_('Steal')}</Th>
                    <Th>{_('Host CPU')}</Th>
                    <Th>{_('Affinity')}</Th>
                    <Th>{_('Scheduler')}</Th>
                </Tr>
            </Thead>
            <Tbody>
                {rows.map(row => (
                    <Row
                        key={row.id} row={row} use={use?.get(row.id ?? 0)}
                        isSelected={selected.has(row.id ?? 0)} onSelect={onSelect}
                    />
                ))}
            </Tbody>
        </Table>
    );
}

interface RowProps {
    row: Vcpu; use: VcpuUse | undefined; isSelected: boolean;
    onSelect: (ids: number[], isSelected: boolean) => void;
}

function Row({ row, use, isSelected, onSelect }: RowProps) {
    const id = row.id ?? 0;
    const hasUse = row.present && use;
    const language = cockpit.language.replace('_', '-');
    return (
        <Tr>
            <Td modifier="fitContent">
                <Checkbox
                    id={`select-${id}`} aria-label={format(_('Select $0'), namesOf([id]))}
                    isChecked={isSelected} onChange={(_event, on) => onSelect([id], on)}
                />
            </Td>
            <Td dataLabel={_('vCPU')}>{id}</Td>
            <Td dataLabel={_('State')}><div><Presence vcpu={row} /></div></Td>
            <Td dataLabel={_('Use')}>{hasUse ? percent(use.used, language) : '–'}</Td>
            <Td dataLabel={_('Steal')}>{hasUse ? percent(use.stolen, language) : '–'}</Td>
            <Td dataLabel={_('Host CPU')}>{hasUse ? use.hostCpu ?? '–' : '–'}</Td>
            <Td dataLabel={_('Affinity')}><Value setting={affinityOf(row)} /></Td>
            <Td dataLabel={_('Scheduler')}><Value setting={schedulerOf(row)} /></Td>
        </Tr>
    );
}

function Presence({ vcpu }: { vcpu: Vcpu }) {
    switch (presenceOf(vcpu)) {
    case 'free': return <Label isCompact variant="outline">{_('Free')}</Label>;
    case 'pending': return <Label isCompact variant="outline" status="info">{_('Removal pending')}</Label>;
    case 'not-started': return <Label isCompact variant="outline" status="warning">{_('Not started')}</Label>;
    case 'offline': return <Label isCompact variant="outline" status="warning">{_('Offline in the guest')}</Label>;
    case 'present': return vcpu.started ? <>{_('Started')}</> : <>{_('Present')}</>;
    }
}

/** A value in force. If the desired value differs, both are shown. */
function Value({ setting }: { setting: Setting }) {
    if (!setting.desired) return <>{setting.actual || '–'}</>;
    return (
        <>
            {setting.actual}
            <div className="vcpud-note"><Label isCompact status="warning">{format(_('wanted: $0'), setting.desired)}</Label></div>
        </>
    );
}
