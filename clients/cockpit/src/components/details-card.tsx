// Owns the card with the facts about the QEMU process.
import { CardBody } from '@patternfly/react-core';

import { useUser } from '../hooks/user';
import type { MachineState } from '../model/fleet';
import { _ } from '../text';
import { PageCard } from './page-card';
import { FactList } from './parts';
import type { Fact } from './parts';

function originText(origin: string): string {
    switch (origin) {
    case 'socket': return _('a QMP socket in the directory of vcpud');
    case 'file': return _('a file of the configuration');
    case 'registration': return _('a registration');
    default: return origin;
    }
}

export function DetailsCard({ machine }: { machine: MachineState }) {
    const since = machine.Since > 0 && new Date(machine.Since / 1000).toLocaleString(cockpit.language.replace('_', '-'));
    const [owner, registrant] = [useUser(machine.Owner), useUser(machine.Registrant)];
    const facts: Fact[] = [
        [_('QEMU'), [machine.QemuVersion, machine.Architecture, machine.Accelerator].filter(Boolean).join(', ')],
        [_('Process'), machine.Leader > 0 && machine.Leader],
        [_('Running since'), since],
        [_('User'), owner],
        [_('Registered by'), registrant],
        [_('Known from'), originText(machine.Origin)],
        [_('Unit'), machine.Unit],
        [_('UUID'), machine.Uuid],
    ];
    return (
        <PageCard title={_('Details')}>
            <CardBody>
                <FactList facts={facts} columns={{ default: '1Col', md: '2Col', xl: '3Col' }} />
            </CardBody>
        </PageCard>
    );
}
