// Owns the list of machines.
import { memo } from 'react';

import { Card, CardBody, EmptyState, EmptyStateBody, SearchInput, Title, Toolbar, ToolbarContent, ToolbarItem } from '@patternfly/react-core';
import { CubesIcon } from '@patternfly/react-icons';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';

import { useHistory, usePageState } from '../hooks/page';
import { hasAnswered, isConnected, sorted } from '../model/fleet';
import type { MachineState } from '../model/fleet';
import { cpus, latest } from '../model/usage';
import { _, format, namesOf, ngettext } from '../text';
import { Sparkline } from './chart';
import { StateLabel, ViewBegin } from './parts';

interface ListProps { filter: string; onFilter: (filter: string) => void }

export function MachineList({ filter, onFilter }: ListProps) {
    const { fleet } = usePageState();
    const machines = sorted(fleet);
    const shown = machines.filter(({ Name }) => Name.toLowerCase().includes(filter.toLowerCase()));
    return (
        <>
            <ViewBegin><Title headingLevel="h1">{_('Virtual CPUs of machines')}</Title></ViewBegin>
            <Card>
                {machines.length === 0 ? <CardBody><NoMachines /></CardBody> : (
                    <>
                        <Toolbar inset={{ default: 'insetMd' }} className="vcpud-toolbar">
                            <ToolbarContent>
                                <ToolbarItem>
                                    <SearchInput
                                        aria-label={_('Filter by name')} placeholder={_('Filter by name')} value={filter}
                                        onChange={(_event, value) => onFilter(value)} onClear={() => onFilter('')}
                                        resetButtonLabel={_('Clear the filter')}
                                    />
                                </ToolbarItem>
                                <ToolbarItem alignSelf="center" role="status">
                                    {format(ngettext('$0 machine', '$0 machines', shown.length), shown.length)}
                                </ToolbarItem>
                            </ToolbarContent>
                        </Toolbar>
                        <MachineTable machines={shown} />
                    </>
                )}
            </Card>
        </>
    );
}

function NoMachines() {
    return (
        <EmptyState titleText={_('No machines')} headingLevel="h2" icon={CubesIcon}>
            <EmptyStateBody>
                {_('vcpud finds a virtual machine when its QEMU has a QMP socket in the directory /run/vcpud/qmp. A machine appears here as soon as it starts.')}
            </EmptyStateBody>
            <EmptyStateBody>
                <code>-qmp unix:/run/vcpud/qmp/web.sock,server=on,wait=off</code>
            </EmptyStateBody>
        </EmptyState>
    );
}

function MachineTable({ machines }: { machines: MachineState[] }) {
    if (machines.length === 0) {
        return (
            <CardBody>
                <EmptyState titleText={_('No machine has this name')} headingLevel="h2" variant="sm">
                    <EmptyStateBody>{_('Change or clear the filter.')}</EmptyStateBody>
                </EmptyState>
            </CardBody>
        );
    }
    return (
        <Table variant="compact" gridBreakPoint="grid-md" aria-label={_('Machines')}>
            <Thead>
                <Tr>
                    <Th>{_('Name')}</Th>
                    <Th>{_('State')}</Th>
                    <Th>{_('vCPUs')}</Th>
                    <Th>{_('Used host CPUs')}</Th>
                </Tr>
            </Thead>
            <Tbody>{machines.map(machine => <Row key={machine.path} machine={machine} />)}</Tbody>
        </Table>
    );
}

const Row = memo(function Row({ machine }: { machine: MachineState }) {
    const address = `#${cockpit.location.encode(['machine', machine.Name])}`;
    const pending = machine.PendingRemovals;
    return (
        <Tr>
            <Td dataLabel={_('Name')}><a href={address}>{machine.Name}</a></Td>
            <Td dataLabel={_('State')}><div><StateLabel machine={machine} /></div></Td>
            <Td dataLabel={_('vCPUs')}>
                {hasAnswered(machine) ? format(_('$0 of $1'), machine.Vcpus, machine.MaxVcpus) : '–'}
                {pending.length > 0 && <div className="vcpud-note">{format(_('$0 pending'), namesOf(pending))}</div>}
            </Td>
            <Td dataLabel={_('Used host CPUs')}><Use machine={machine} /></Td>
        </Tr>
    );
});

function Use({ machine }: { machine: MachineState }) {
    const history = useHistory(machine.path);
    const point = latest(history);
    if (!point || !isConnected(machine)) return <>{'–'}</>;
    return (
        <div className="vcpud-use">
            <span className="vcpud-number">{cpus(point.used, cockpit.language.replace('_', '-'))}</span>
            <Sparkline points={history?.points ?? []} top={machine.Vcpus} />
        </div>
    );
}
