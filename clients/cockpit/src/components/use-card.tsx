// Owns the card with the use of the machine in the last minutes.
import { CardBody, Content } from '@patternfly/react-core';

import { useHistory } from '../hooks/page';
import type { MachineState } from '../model/fleet';
import { cpus, latest, spanOf } from '../model/usage';
import { _, format, ngettext } from '../text';
import { UseChart } from './chart';
import { PageCard } from './page-card';

export function UseCard({ machine }: { machine: MachineState }) {
    const history = useHistory(machine.path);
    const point = latest(history);
    const points = history?.points ?? [];
    const top = Math.max(1, ...points.map(one => Math.ceil(Math.max(one.vcpus, one.used ?? 0))));
    const minutes = spanOf(points) / 60;
    const language = cockpit.language.replace('_', '-');
    const label = point
        ? format(_('The vCPUs use $0 host CPUs, and wait for $1.'), cpus(point.used, language), cpus(point.stolen, language))
        : _('No values yet');
    return (
        <PageCard title={_('Use of host CPUs')}>
            <CardBody>
                <UseChart points={points} top={top} label={label} />
                <div className="vcpud-times" aria-hidden="true">
                    <span>{format(ngettext('$0 minute ago', '$0 minutes ago', minutes), minutes)}</span><span>{_('now')}</span>
                </div>
                <dl className="vcpud-legend">
                    <Entry name="vcpud-used" title={_('Used')} value={point && cpus(point.used, language)} />
                    <Entry name="vcpud-stolen" title={_('Steal')} value={point && cpus(point.stolen, language)} />
                    <Entry name="vcpud-throttled" title={_('Throttled')} value={point && cpus(point.throttled, language)} />
                    <Entry name="vcpud-vcpus" title={_('vCPUs')} value={String(machine.Vcpus)} />
                </dl>
                <Content component="small">
                    {_('Steal is the time in which vCPUs waited for a host CPU. Throttled is the time in which the bandwidth limit stopped them.')}
                </Content>
            </CardBody>
        </PageCard>
    );
}

function Entry({ name, title, value }: { name: string; title: string; value: string | undefined }) {
    return (
        <div>
            <dt><svg className="vcpud-key" viewBox="0 0 16 4" aria-hidden="true"><polyline className={name} points="0,2 16,2" /></svg>{title}</dt>
            <dd>{value ?? '–'}</dd>
        </div>
    );
}
