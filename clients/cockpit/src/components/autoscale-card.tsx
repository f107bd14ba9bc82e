// Owns the card of automatic scaling: its settings, and the explanation of the last decision.
import { useEffect, useMemo, useState, useSyncExternalStore } from 'react';

import { Alert, Button, CardBody, CardFooter, Checkbox, Content, Form, FormGroup, Spinner, Stack } from '@patternfly/react-core';

import { AutoscaleLink } from '../bus/autoscale';
import type { Scaling, Settings } from '../bus/autoscale';
import { useCall, useEvery, useIsVisible } from '../hooks/page';
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
    const { scaling, isSilent } = useSyncExternalStore(link.subscribe, link.current);
    // The numbers of an explanation change without signals.
    useEvery(5, link.refresh);
    const isVisible = useIsVisible();
    useEffect(() => { if (isVisible) link.refresh(); }, [isVisible, link]);
    const settings = useSettings(link, machine);
    // Their results outlive the content of the card, which can change before the reply.
    const enable = useCall(async access => {
        if (!settings.limits) return;
        await link.enable(settings.limits, access);
        settings.onChange(undefined);
    });
    const disable = useCall(access => link.disable(access));
    // A new request makes the result of the other one old.
    const calls = { enable: following(enable, disable), disable: following(disable, enable) };
    return (
        <PageCard title={_('Automatic scaling')}>
            {(isSilent || enable.error || disable.error) && (
                <CardBody>
                    <Stack hasGutter>
                        {isSilent && <Silent />}
                        <Failure call={calls.enable} title={_('The request to turn on automatic scaling failed')} />
                        <Failure call={calls.disable} title={_('The request to turn off automatic scaling failed')} />
                    </Stack>
                </CardBody>
            )}
            {scaling.kind === 'scaled'
                ? <Scaled explanation={scaling.explanation} permission={scaling.permission} isSilent={isSilent} call={calls.disable} />
                : <NotScaled scaling={scaling} machine={machine} isSilent={isSilent} settings={settings} call={calls.enable} />}
        </PageCard>
    );
}

/** Returns a call that clears the result of another one. */
const following = (call: Call, other: Call): Call => ({
    ...call,
    run: access => {
        other.clear();
        return call.run(access);
    },
});

function Silent() {
    return (
        <Alert isInline isLiveRegion variant="warning" title={_('vcpud-autoscale does not answer')}>
            {_('The page goes on when it answers. If it does not, read its journal, journalctl -u vcpud-autoscale, and restart it.')}
        </Alert>
    );
}

interface ScaledProps { explanation: Explanation; permission: Permission | undefined; isSilent: boolean; call: Call }

function Scaled({ explanation, permission, isSilent, call }: ScaledProps) {
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
                </Stack>
            </CardBody>
            <CardFooter>
                <SwitchButton
                    titles={[_('Turn off'), _('Turn off with administrative access')]} permission={permission}
                    isPossible={!isSilent} call={call}
                />
            </CardFooter>
        </>
    );
}

interface SwitchButtonProps {
    /** The title, and that with administrative access. */
    titles: [string, string];
    permission: Permission | undefined; call: Call; isPossible: boolean;
}

function SwitchButton({ titles, permission, call, isPossible }: SwitchButtonProps) {
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

/** The error of a call. The user can close it, because the state of the service can have changed since then. */
function Failure({ call, title }: { call: Call; title: string }) {
    return call.error && <ErrorAlert title={title} error={call.error} call={call} onRetry={access => void call.run(access)} />;
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

/** What the user has entered, and the limits if they are possible. */
interface SettingsState { form: SettingsTexts; limits: Settings | undefined; onChange: (form: SettingsTexts | undefined) => void }

/** Returns the settings in the form. Until the user changes them, they are the last known ones of the machine. */
function useSettings(link: AutoscaleLink, machine: MachineState): SettingsState {
    const [texts, setTexts] = useState<SettingsTexts>();
    const { min, max } = link.limits ?? { min: 1, max: machine.MaxVcpus };
    const form = texts ?? { min: String(min), max: String(max), isObserved: false };
    const limits = limitsOf(form.min, form.max, machine.MaxVcpus);
    return { form, limits: limits && { ...limits, mode: form.isObserved ? 'observe' : 'on' }, onChange: setTexts };
}

interface NotScaledProps {
    scaling: Scaling; machine: MachineState; isSilent: boolean; settings: SettingsState; call: Call;
}

function NotScaled({ scaling, machine, isSilent, settings, call }: NotScaledProps) {
    const { form, limits, onChange } = settings;
    if (scaling.kind === 'unknown') return <CardBody><Spinner size="md" aria-label={_('Reading the settings')} /></CardBody>;
    return (
        <>
            <CardBody>
                <Stack hasGutter>
                    <Content component="p">{_('The service vcpud-autoscale sets the number of vCPUs by the load of the machine.')}</Content>
                    <Content component="p">
                        {scaling.kind === 'absent'
                            ? _('The service is not running, so that it changes nothing. Its settings for this machine are not known.')
                            : _('It is off for this machine.')}
                    </Content>
                    {scaling.kind === 'failed' && <ErrorAlert title={_('The settings cannot be read')} error={scaling.error} />}
                    <SettingsForm form={form} max={machine.MaxVcpus} onChange={onChange} />
                    {areReversed(form.min, form.max) && (
                        <Alert
                            isInline variant="warning"
                            title={_('Enter a maximum that is not below the minimum')}
                        />
                    )}
                </Stack>
            </CardBody>
            <CardFooter>
                <SwitchButton
                    titles={[_('Turn on'), _('Turn on with administrative access')]} isPossible={limits !== undefined && !isSilent}
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
