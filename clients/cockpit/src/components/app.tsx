// Owns the frame of the page: the state of the connection, and which view the address selects.
import { useState } from 'react';

import { Alert, Button, EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter, Spinner, Stack } from '@patternfly/react-core';
import { ExclamationCircleIcon } from '@patternfly/react-icons';

import type { CallError } from '../bus/client';
import type { Status } from '../bus/store';
import { usePage, usePageState, useRoute } from '../hooks/page';
import { adviceFor, isDenied, isInterrupted } from '../model/errors';
import { _ } from '../text';
import { MachineList } from './machine-list';
import { MachinePage } from './machine-page';
import { ServiceNotice } from './service-notice';

export function App() {
    const { status, fleet } = usePageState();
    const [view, name] = useRoute();
    // The list is not there while a machine is shown.
    const [filter, setFilter] = useState('');
    return (
        <main className="vcpud-page">
            <Stack hasGutter>
                {status.kind === 'failed' && <Unavailable error={status.error} />}
                {status.kind === 'connecting' && fleet.machines.size === 0 && <Connecting />}
                {(fleet.machines.size > 0 || status.kind === 'silent') && <ServiceNotice />}
                <ConfigurationNotice errors={fleet.configurationErrors} />
                {isUsable(status, fleet.machines.size) &&
                    (view === 'machine' && name ? <MachinePage name={name} /> : <MachineList filter={filter} onFilter={setFilter} />)}
            </Stack>
        </main>
    );
}

const isUsable = (status: Status, machines: number): boolean =>
    status.kind === 'ready' || status.kind === 'stopped' || (status.kind !== 'failed' && machines > 0);

function Connecting() {
    return <EmptyState titleText={_('Connecting to vcpud')} headingLevel="h1" icon={Spinner} />;
}

function causeOf(code: string): string {
    if (isInterrupted(code)) return adviceFor('disconnected');
    if (isDenied(code) || code === 'access-denied') {
        return _('The system bus does not let your account call vcpud. Check the files of the bus policy: /usr/share/dbus-1/system.d/org.vcpud1.conf must be installed.');
    }
    return _('The service is not installed, or it cannot start. Install the package vcpud, or read its journal: journalctl -u vcpud');
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
