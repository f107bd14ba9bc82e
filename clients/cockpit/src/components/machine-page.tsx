// Owns the page of one machine: its header, its notices, and the order of its cards.
import { Alert, Breadcrumb, BreadcrumbItem, EmptyState, EmptyStateBody, EmptyStateFooter, Flex, Title } from '@patternfly/react-core';
import { SearchIcon } from '@patternfly/react-icons';

import { useSelection } from '../hooks/change';
import type { Selection } from '../hooks/change';
import { useTuning, useVcpus } from '../hooks/machine';
import { usePageState } from '../hooks/page';
import { hasAnswered, isConnected } from '../model/fleet';
import type { MachineState } from '../model/fleet';
import { _, format } from '../text';
import { AutoscaleCard } from './autoscale-card';
import { ChangeCard } from './change-card';
import { DetailsCard } from './details-card';
import { JournalCard } from './journal-card';
import { StateLabel, ViewBegin } from './parts';
import { PlacementCard } from './placement-card';
import { Progress } from './progress';
import { UseCard } from './use-card';
import { VcpusCard } from './vcpus-card';

export function MachinePage({ name }: { name: string }) {
    const { fleet } = usePageState();
    const machine = [...fleet.machines.values()].find(({ Name }) => Name === name);
    return (
        <>
            <Breadcrumb aria-label={_('Position')}>
                <BreadcrumbItem to="#/">{_('Machines')}</BreadcrumbItem>
                <BreadcrumbItem isActive>{name}</BreadcrumbItem>
            </Breadcrumb>
            {machine ? <Machine key={machine.generation} machine={machine} /> : <Missing name={name} />}
        </>
    );
}

function Missing({ name }: { name: string }) {
    return (
        <ViewBegin>
            <EmptyState titleText={format(_('Machine $0 does not run'), name)} headingLevel="h1" icon={SearchIcon}>
                <EmptyStateBody>{_('Its QEMU process has ended, or it was unregistered. This page shows it again when it starts.')}</EmptyStateBody>
                <EmptyStateFooter><a href="#/">{_('All machines')}</a></EmptyStateFooter>
            </EmptyState>
        </ViewBegin>
    );
}

function Machine({ machine }: { machine: MachineState }) {
    const selection = useSelection(machine);
    return (
        <>
            <Flex alignItems={{ default: 'alignItemsCenter' }}>
                <ViewBegin><Title headingLevel="h1">{machine.Name}</Title></ViewBegin>
                <StateLabel machine={machine} />
            </Flex>
            <MachineNotices machine={machine} />
            {hasAnswered(machine)
                ? <VcpuCards machine={machine} selection={selection} />
                : <Progress machine={machine} change={selection.change} onRetry={undefined} />}
            <JournalCard name={machine.Name} />
            <DetailsCard machine={machine} />
        </>
    );
}

/** The cards about the vCPUs, which exist when QEMU has answered. */
function VcpuCards({ machine, selection }: { machine: MachineState; selection: Selection }) {
    const { vcpus, refresh } = useVcpus(machine);
    const tuning = useTuning(machine);
    return (
        <>
            <div className="vcpud-columns">
                <ChangeCard machine={machine} selection={selection} vcpus={vcpus} />
                <UseCard machine={machine} />
            </div>
            <VcpusCard machine={machine} vcpus={vcpus} tuning={tuning} onChange={refresh} />
            <div className="vcpud-columns">
                <AutoscaleCard machine={machine} />
                <PlacementCard machine={machine} tuning={tuning} onChange={refresh} />
            </div>
        </>
    );
}

function MachineNotices({ machine }: { machine: MachineState }) {
    return (
        <>
            {!hasAnswered(machine) && (
                <Alert isInline isLiveRegion variant="warning" title={_('QEMU has not answered yet')}>
                    {_('The page shows the vCPUs when QEMU answers. If this takes more than a minute, check that QEMU answers and that no other client uses its QMP socket.')}
                </Alert>
            )}
            {hasAnswered(machine) && !isConnected(machine) && (
                <Alert isInline isLiveRegion variant="danger" title={_('vcpud has no connection to QEMU')}>
                    {_('The values are the last known ones, and changes are not possible. vcpud connects again by itself. If this takes more than a minute, check that QEMU answers and that no other client uses its QMP socket.')}
                </Alert>
            )}
            {hasAnswered(machine) && machine.PlacementErrors.length > 0 && (
                <Alert isInline isExpandable variant="warning" title={_('The placement of the vCPUs is not complete')}>
                    <ul className="vcpud-plain-list">
                        {machine.PlacementErrors.map(line => <li key={line}>{line}</li>)}
                    </ul>
                </Alert>
            )}
        </>
    );
}
