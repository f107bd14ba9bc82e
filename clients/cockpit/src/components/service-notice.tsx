// Owns the notice that the service does not run or does not answer, for the page and its dialogs.
import { Alert, AlertActionLink } from '@patternfly/react-core';

import { usePage, usePageState } from '../hooks/page';
import { _ } from '../text';

export function ServiceNotice() {
    const { store } = usePage();
    const { status } = usePageState();
    if (status.kind === 'silent') {
        return (
            <Alert isInline isLiveRegion variant="warning" title={_('vcpud does not answer')}>
                {_('The values are the last known ones. The page goes on when vcpud answers. If it does not, read its journal, journalctl -u vcpud, and restart it.')}
            </Alert>
        );
    }
    if (status.kind !== 'stopped') return null;
    return (
        <Alert
            isInline isLiveRegion variant="warning" title={_('vcpud does not run')}
            actionLinks={<AlertActionLink onClick={store.open}>{_('Start the service')}</AlertActionLink>}
        >
            {_('The values are the last known ones. The page follows again when the service starts.')}
        </Alert>
    );
}
