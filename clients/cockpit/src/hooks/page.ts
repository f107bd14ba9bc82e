// Owns the hooks that connect components with the state of the page.
import { createContext, useCallback, useContext, useEffect, useRef, useState, useSyncExternalStore } from 'react';

import type { Statistics } from '../bus/statistics';
import type { State, Store } from '../bus/store';
import { CallError } from '../bus/client';
import type { Access } from '../bus/client';
import { isAbsent } from '../model/errors';
import type { History } from '../model/usage';

export interface Page { store: Store; statistics: Statistics }

export const PageContext = createContext<Page | null>(null);

export function usePage(): Page {
    const page = useContext(PageContext);
    if (!page) throw new Error('the component is outside of the page');
    return page;
}

export function usePageState(): State {
    const { store } = usePage();
    return useSyncExternalStore(store.subscribe, store.current);
}

/** Returns whether the service runs. A call to a service that an administrator stopped would start it again. */
export const useIsReady = (): boolean => usePageState().status.kind === 'ready';

/** Returns whether the page reads: the service runs, and the page is visible. A page reads again when it is shown. */
export const useCanRead = (): boolean => {
    const isVisible = useIsVisible();
    return useIsReady() && isVisible;
};

export const useIsVisible = (): boolean => useSyncExternalStore(followVisibility, () => !cockpit.hidden);

function followVisibility(listener: () => void): () => void {
    cockpit.addEventListener('visibilitychange', listener);
    return () => cockpit.removeEventListener('visibilitychange', listener);
}

/** Returns the history of a machine, which is new after each sample. */
export function useHistory(path: string): History | undefined {
    const { statistics } = usePage();
    return useSyncExternalStore(statistics.subscribe, statistics.current).get(path);
}

/** Returns the part of the address that belongs to the page, such as ["machine", "web"]. */
export function useRoute(): string[] {
    const [route, setRoute] = useState<string[]>(cockpit.location.path);
    useEffect(() => {
        const follow = () => setRoute(cockpit.location.path);
        cockpit.addEventListener('locationchanged', follow);
        return () => cockpit.removeEventListener('locationchanged', follow);
    }, []);
    return route;
}

export interface Call {
    isBusy: boolean;
    error: CallError | null;
    /** Makes the call. Returns whether it succeeded. */
    run: (access?: Access) => Promise<boolean>;
    clear: () => void;
}

/** Makes a call that changes something, and keeps its error for ErrorAlert. */
export function useCall(call: (access: Access) => Promise<unknown>): Call {
    const [isBusy, setBusy] = useState(false);
    const [error, setError] = useState<CallError | null>(null);
    useReturn(() => setError(current => (current && isAbsent(current.code) ? null : current)));
    const run = async (access: Access = 'user') => {
        setBusy(true);
        setError(null);
        try {
            await call(access);
            return true;
        } catch (caught) {
            setError(CallError.of(caught));
            return false;
        } finally {
            setBusy(false);
        }
    };
    const clear = useCallback(() => setError(null), []);
    return { isBusy, error, run, clear };
}

/** Calls back when the service is ready again. */
function useReturn(callback: () => void): void {
    const isReady = useIsReady();
    const latest = useRef(callback);
    useEffect(() => { latest.current = callback; });
    useEffect(() => { if (isReady) latest.current(); }, [isReady]);
}

/** Calls back every few seconds while the page is visible. */
export function useEvery(seconds: number, callback: () => void): void {
    const isVisible = useIsVisible();
    useEffect(() => {
        if (!isVisible) return;
        const timer = window.setInterval(callback, seconds * 1000);
        return () => window.clearInterval(timer);
    }, [seconds, callback, isVisible]);
}
