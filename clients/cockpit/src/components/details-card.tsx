// Owns the card with the facts about the QEMU process.
import { CardBody, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm } from '@patternfly/react-core';

import { NO_USER } from '../model/fleet';
import type { MachineState } from '../model/fleet';
import { _, format } from '../text';
import { PageCard } from './page-card';

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
    const facts: [string, string | number | false][] = [
        [_('QEMU'), [machine.QemuVersion, machine.Architecture, machine.Accelerator].filter(Boolean).join(', ')],
        [_('Process'), machine.Leader > 0 && machine.Leader],
        [_('Running since'), since],
        [_('User'), machine.Owner !== NO_USER && format(_('uid $0'), machine.Owner)],
        [_('Registered by'), machine.Registrant !== NO_USER && format(_('uid $0'), machine.Registrant)],
        [_('Known from'), originText(machine.Origin)],
        [_('Unit'), machine.Unit],
        [_('UUID'), machine.Uuid],
    ];
    return (
        <PageCard title={_('Details')}>
            <CardBody>
                <DescriptionList isCompact columnModifier={{ default: '1Col', md: '2Col', xl: '3Col' }}>
                    {facts.map(([title, value]) => value && (
                        <DescriptionListGroup key={title}>
                            <DescriptionListTerm>{title}</DescriptionListTerm>
                            <DescriptionListDescription className="vcpud-break">{value}</DescriptionListDescription>
                        </DescriptionListGroup>
                    ))}
                </DescriptionList>
            </CardBody>
        </PageCard>
    );
}
