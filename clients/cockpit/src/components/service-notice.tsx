// Owns the notice that the service is not running or does not answer, for the page and its dialogs.
import { Alert, AlertActionLink } from '@patternfly/react-core';

import type { State } from '../bus/store';
import { usePage, usePageState } from '../hooks/page';
import { _ } from '../text';

export function ServiceNotice() {
    const { store } = usePage();
    const state = usePageState();
    const { status } = state;
    if (status.kind === 'silent') {
        return (
            <Alert isInline isLiveRegion variant="warning" title={_('vcpud does not answer')}>
                {_('The values are the last known ones. The page goes on when vcpud answers. If it does not, read its journal, journalctl -u vcpud, and restart it.')}
            </Alert>
        );
    }
    if (status.kind !== 'stopped') return null;
    // A service without machines ends by itself, so that this is no reason for a warning.
    const isIdle = state.isRead && state.fleet.machines.size === 0;
    return (
        <Alert
            isInline isLiveRegion variant={isIdle ? 'info' : 'warning'} title={_('vcpud is not running')}
            actionLinks={<AlertActionLink onClick={store.open}>{_('Start the service')}</AlertActionLink>}
        >
            {stoppedText(state)}
        </Alert>
    );
}

function stoppedText({ isRead, fleet }: State): string {
    if (!isRead) return _('The machines are not known. The page shows them when the service starts.');
    if (fleet.machines.size === 0) return _('vcpud had no machines when it ended. The page shows machines when the service starts again.');
    return _('The values are the last known ones. The page follows again when the service starts.');
}
