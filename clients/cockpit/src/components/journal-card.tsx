// Owns the card with the last entries of the journal about the machine.
import { useEffect, useState } from 'react';

import { Button, CardBody, Content, Spinner, Stack } from '@patternfly/react-core';
import type { ReactNode } from 'react';

import type { Access, CallError } from '../bus/client';
import { followJournal } from '../bus/journal';
import { useUser } from '../hooks/user';
import { withEntries } from '../model/journal';
import type { Entry, Request } from '../model/journal';
import { _, format } from '../text';
import { PageCard } from './page-card';
import { ErrorAlert } from './parts';

/** How long journalctl usually takes to print the first entry, in milliseconds. */
const USUAL_DELAY = 1000;

export function JournalCard({ name }: { name: string }) {
    const [access, setAccess] = useState<Access>('user');
    const [entries, setEntries] = useState<readonly Entry[]>([]);
    const [error, setError] = useState<CallError | null>(null);
    const [isReading, setReading] = useState(true);
    const [attempts, setAttempts] = useState(0);
    useEffect(() => {
        // journalctl does not say that there are no entries so far.
        const timer = window.setTimeout(() => setReading(false), USUAL_DELAY);
        const end = (reason: CallError | null) => { setError(reason); setReading(false); };
        const close = followJournal(name, access, added => setEntries(current => withEntries(current, added)), end);
        return () => { window.clearTimeout(timer); close(); };
    }, [name, access, attempts]);
    const follow = (as: Access) => {
        setError(null);
        setReading(true);
        setAccess(as);
        setAttempts(current => current + 1);
    };
    const isEmpty = entries.length === 0;
    if (isEmpty && isReading) {
        return <Frame><Spinner size="md" aria-label={_('Reading the journal')} /></Frame>;
    }
    return (
        <Frame>
            {error && <ErrorAlert title={_('The journal cannot be read')} error={error} />}
            {!isEmpty ? <Entries entries={entries} /> : !error && (
                <Content component="p">
                    {_('The journal has no entries about this machine, or your account cannot read it. The group systemd-journal can read it.')}
                </Content>
            )}
            {error && <Link title={_('Try again')} onClick={() => follow(access)} />}
            {isEmpty && access === 'user' &&
                <Link title={_('Read it with administrative access')} onClick={() => follow('administrator')} />}
        </Frame>
    );
}

function Frame({ children }: { children: ReactNode }) {
    return (
        <PageCard title={_('What happened lately')}>
            <CardBody><Stack hasGutter>{children}</Stack></CardBody>
        </PageCard>
    );
}

function Link({ title, onClick }: { title: string; onClick: () => void }) {
    return <div><Button variant="link" isInline onClick={onClick}>{title}</Button></div>;
}

function Entries({ entries }: { entries: readonly Entry[] }) {
    const language = cockpit.language.replace('_', '-');
    return (
        <ol className="vcpud-journal" aria-label={_('Entries')} tabIndex={0}>
            {entries.map(entry => (
                <li key={entry.cursor} className={entry.isProblem ? 'vcpud-problem' : ''}>
                    <time dateTime={new Date(entry.time).toISOString()}>{timeOf(entry.time, language)}</time>
                    <span>{entry.isProblem && <strong>{_('Warning')}: </strong>}{entry.request ? <RequestText request={entry.request} /> : entry.text}</span>
                </li>
            ))}
        </ol>
    );
}

function RequestText({ request: { operation, uid, values } }: { request: Request }) {
    return <>{format(_('Request of $0: $1'), useUser(uid), `${operation} (${values})`)}</>;
}

/** Returns the time of an entry, with the date if it is not from today. */
function timeOf(time: number, language: string): string {
    const date = new Date(time);
    const isToday = date.toDateString() === new Date().toDateString();
    return isToday ? date.toLocaleTimeString(language) : date.toLocaleString(language);
}
