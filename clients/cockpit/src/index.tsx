// Owns the start of the page.
import { createRoot } from 'react-dom/client';

import '@patternfly/react-core/dist/styles/base.css';

import { App } from './components/app';
import { Statistics } from './bus/statistics';
import { Store } from './bus/store';
import { PageContext } from './hooks/page';
import { _ } from './text';
import { followTheme } from './theme';
// After the styles of the components, which it changes.
import './page.css';

followTheme();
cockpit.transport.wait(() => {
    document.documentElement.lang = cockpit.language.replace('_', '-');
    document.title = _('Virtual CPUs');
    const store = new Store();
    const page = { store, statistics: new Statistics(store) };
    const root = document.getElementById('app');
    if (root) createRoot(root).render(<PageContext.Provider value={page}><App /></PageContext.Provider>);
});
