// Owns the frame of the page: the state of the connection, and which view the address selects.
import { useState } from 'react';

import { Alert, Button, EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter, Spinner, Stack } from '@patternfly/react-core';
import { ExclamationCircleIcon } from '@patternfly/react-icons';

import type { CallError } from '../bus/client';
import type { State } from '../bus/store';
import { usePage, usePageState, useRoute } from '../hooks/page';
import { causeOf } from '../model/errors';
import { _ } from '../text';
import { MachineList } from './machine-list';
import { MachinePage } from './machine-page';
import { ServiceNotice } from './service-notice';

export function App() {
    const state = usePageState();
    const { status, fleet } = state;
    const [view, name] = useRoute();
    // The list is not there while a machine is shown.
    const [filter, setFilter] = useState('');
    return (
        <main className="vcpud-page">
            <Stack hasGutter>
                {status.kind === 'failed' && <Unavailable error={status.error} />}
                {status.kind === 'connecting' && fleet.machines.size === 0 && <Connecting />}
                <ServiceNotice />
                <ConfigurationNotice errors={fleet.configurationErrors} />
                {isUsable(state) &&
                    (view === 'machine' && name ? <MachinePage name={name} /> : <MachineList filter={filter} onFilter={setFilter} />)}
            </Stack>
        </main>
    );
}

/** Returns whether the machines are known, or were known when the service ended. */
const isUsable = ({ status, fleet, isRead }: State): boolean =>
    isRead && (status.kind === 'ready' || status.kind === 'stopped' || (status.kind !== 'failed' && fleet.machines.size > 0));

function Connecting() {
    return <EmptyState titleText={_('Connecting to vcpud')} headingLevel="h1" icon={Spinner} />;
}

/** The state without a service. The page connects by itself when the service starts. */
function Unavailable({ error }: { error: CallError }) {
    const { store } = usePage();
    return (
        <EmptyState titleText={_('vcpud is not available')} headingLevel="h1" icon={ExclamationCircleIcon} status="danger">
            <EmptyStateBody>
                {causeOf(error.code)}
            </EmptyStateBody>
            <EmptyStateFooter>
                <EmptyStateActions>
                    <Button variant="primary" onClick={store.open}>{_('Try again')}</Button>
                </EmptyStateActions>
                {error.message !== error.code && <EmptyStateBody>{error.message}</EmptyStateBody>}
            </EmptyStateFooter>
        </EmptyState>
    );
}

/** The lines of the configuration that the service ignores. */
function ConfigurationNotice({ errors }: { errors: string[] }) {
    if (errors.length === 0) return null;
    return (
        <Alert isInline isExpandable variant="warning" title={_('The configuration of vcpud has errors')}>
            <ul className="vcpud-plain-list">{errors.map(line => <li key={line}>{line}</li>)}</ul>
        </Alert>
    );
}
