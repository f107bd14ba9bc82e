// Owns the card of automatic scaling: its settings, and the explanation of the last decision.
import { useMemo, useState, useSyncExternalStore } from 'react';

import { Alert, Button, CardBody, CardFooter, Checkbox, Content, Form, FormGroup, Spinner, Stack } from '@patternfly/react-core';

import { AutoscaleLink } from '../bus/autoscale';
import type { Scaling } from '../bus/autoscale';
import type { Access } from '../bus/client';
import { useCall, useEvery } from '../hooks/page';
import type { Call } from '../hooks/page';
import { areReversed, limitsOf, reasonOf } from '../model/autoscale';
import type { Explanation } from '../model/autoscale';
import type { MachineState } from '../model/fleet';
import { needsAdministrator } from '../model/permission';
import type { Permission } from '../model/permission';
import { cpus } from '../model/usage';
import { _, format } from '../text';
import { NumberField } from './number-field';
import { PageCard } from './page-card';
import { ErrorAlert, FactList } from './parts';
import type { Fact } from './parts';

export function AutoscaleCard({ machine }: { machine: MachineState }) {
    const link = useMemo(() => new AutoscaleLink(machine.Name), [machine.Name]);
    const scaling = useSyncExternalStore(link.subscribe, link.current);
    // The numbers of an explanation change without signals.
    useEvery(5, link.refresh);
    return (
        <PageCard title={_('Automatic scaling')}>
            <Body link={link} machine={machine} scaling={scaling} />
        </PageCard>
    );
}

interface BodyProps { link: AutoscaleLink; machine: MachineState; scaling: Scaling }

function Body({ link, machine, scaling }: BodyProps) {
    switch (scaling.kind) {
    case 'silent': return <Silent />;
    case 'scaled': return <Scaled link={link} explanation={scaling.explanation} permission={scaling.permission} />;
    default: return <NotScaled link={link} machine={machine} scaling={scaling} />;
    }
}

function Silent() {
    return (
        <CardBody>
            <Alert isInline isLiveRegion variant="warning" title={_('vcpud-autoscale does not answer')}>
                {_('The page goes on when it answers. If it does not, read its journal, journalctl -u vcpud-autoscale, and restart it.')}
            </Alert>
        </CardBody>
    );
}

interface ScaledProps { link: AutoscaleLink; explanation: Explanation; permission: Permission | undefined }

function Scaled({ link, explanation, permission }: ScaledProps) {
    const call = useCall(access => link.disable(access));
    const { mode, min, max, goal, failure } = explanation;
    return (
        <>
            <CardBody>
                <Stack hasGutter>
                    <Content role="status">
                        <p><strong>{reasonOf(explanation)}</strong></p>
                        {explanation.reason && <p className="vcpud-note vcpud-sentence">{explanation.reason}</p>}
                        {mode === 'observe' && <p>{_('The service decides only. It makes no changes.')}</p>}
                    </Content>
                    <Numbers explanation={explanation} />
                    {failure && <Alert isInline variant="warning" title={_('The last request failed')}>{failure}</Alert>}
                    {explanation['sampling-error'] && (
                        <Alert isInline variant="warning" title={_('vcpud does not answer the autoscaler')}>
                            {explanation['sampling-error']}
                        </Alert>
                    )}
                    <Content component="small">
                        {format(_('The limits are $0 and $1 vCPUs. The goal is $2.'), min ?? 1, max ?? '–', goal ?? '–')}
                    </Content>
                    <Denied call={call} title={_('Automatic scaling stays on')} />
                </Stack>
            </CardBody>
            <CardFooter>
                <SwitchButton
                    titles={[_('Turn off'), _('Turn off with administrative access')]} permission={permission} call={call}
                />
            </CardFooter>
        </>
    );
}

interface SwitchButtonProps {
    /** The title, and that with administrative access. */
    titles: [string, string];
    permission: Permission | undefined; call: Call; isPossible?: boolean;
}

function SwitchButton({ titles, permission, call, isPossible = true }: SwitchButtonProps) {
    const isAdministrator = needsAdministrator(permission);
    return (
        <Button
            variant="secondary" isAriaDisabled={!isPossible || call.isBusy} isLoading={call.isBusy}
            // The second click of a double click would undo what the first one did.
            onClick={event => { if (event.detail < 2) void call.run(isAdministrator ? 'administrator' : 'user'); }}
        >
            {titles[isAdministrator ? 1 : 0]}
        </Button>
    );
}

function Denied({ call, title }: { call: Call; title: string }) {
    return call.error && <ErrorAlert title={title} error={call.error} onRetry={access => void call.run(access)} />;
}

function Numbers({ explanation }: { explanation: Explanation }) {
    const language = cockpit.language.replace('_', '-');
    const shown = (value: number | undefined) => value !== undefined && cpus(value, language);
    const facts: Fact[] = [
        [_('Used'), shown(explanation.used)],
        [_('Steal'), shown(explanation.stolen)],
        [_('Throttled'), shown(explanation.throttled)],
        [_('Needed vCPUs'), shown(explanation.needed)],
    ];
    return <FactList facts={facts} columns={{ default: '2Col' }} />;
}

function NotScaled({ link, machine, scaling }: BodyProps) {
    const [form, setForm] = useState(() => {
        const { min, max } = link.limits ?? { min: 1, max: machine.MaxVcpus };
        return { min: String(min), max: String(max), isObserved: false };
    });
    const limits = limitsOf(form.min, form.max, machine.MaxVcpus);
    const call = useCall(async (access: Access) => {
        if (limits) await link.enable({ ...limits, mode: form.isObserved ? 'observe' : 'on' }, access);
    });
    if (scaling.kind === 'unknown') return <CardBody><Spinner size="md" aria-label={_('Reading the settings')} /></CardBody>;
    return (
        <>
            <CardBody>
                <Stack hasGutter>
                    <Content component="p">{_('The service vcpud-autoscale sets the number of vCPUs by the load of the machine.')}</Content>
                    <Content component="p">
                        {scaling.kind === 'absent'
                            ? _('The service does not run, so that it changes nothing. Its settings for this machine are not known.')
                            : _('It is off for this machine.')}
                    </Content>
                    {scaling.kind === 'failed' && <ErrorAlert title={_('The settings cannot be read')} error={scaling.error} />}
                    <SettingsForm form={form} max={machine.MaxVcpus} onChange={setForm} />
                    {areReversed(form.min, form.max) && (
                        <Alert
                            isInline variant="warning"
                            title={_('Enter a maximum that is not below the minimum')}
                        />
                    )}
                    <Denied call={call} title={_('Automatic scaling stays off')} />
                </Stack>
            </CardBody>
            <CardFooter>
                <SwitchButton
                    titles={[_('Turn on'), _('Turn on with administrative access')]} isPossible={limits !== undefined}
                    permission={scaling.kind === 'off' ? scaling.permission : undefined} call={call}
                />
            </CardFooter>
        </>
    );
}

/** What the user has entered: texts, which can be no numbers. */
interface SettingsTexts { min: string; max: string; isObserved: boolean }

interface SettingsFormProps { form: SettingsTexts; max: number; onChange: (form: SettingsTexts) => void }

function SettingsForm({ form, max, onChange }: SettingsFormProps) {
    const limits = [['min', _('Minimum')], ['max', _('Maximum')]] as const;
    return (
        <Form onSubmit={event => event.preventDefault()}>
            <div className="vcpud-limits">
                {limits.map(([key, title]) => (
                    <FormGroup key={key} label={title} fieldId={`autoscale-${key}`}>
                        <NumberField
                            id={`autoscale-${key}`} title={title} text={form[key]} min={1} max={max} multiple={1}
                            onChange={text => onChange({ ...form, [key]: text })}
                        />
                    </FormGroup>
                ))}
            </div>
            <Checkbox
                id="autoscale-observe" isChecked={form.isObserved}
                onChange={(_event, isObserved) => onChange({ ...form, isObserved })}
                label={_('Only observe')} description={_('The service decides and explains, and changes nothing.')}
            />
        </Form>
    );
}
