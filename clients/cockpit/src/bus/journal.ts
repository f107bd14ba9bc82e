// Owns the process journalctl(1) that follows the journal of vcpud for one machine.
import { entryOf, ENTRIES, lines } from '../model/journal';
import type { Entry } from '../model/journal';
import { CallError } from './client';
import type { Access } from './client';

/** The trusted fields of the journal show that the services, and not another program, wrote an entry. */
function commandFor(machine: string): string[] {
    const about = `VM_NAME=${machine}`;
    return ['journalctl', '--output=json', '--follow', '--quiet', `--lines=${ENTRIES}`,
        '_UID=0', 'SYSLOG_IDENTIFIER=vcpud', about,
        '+', '_SYSTEMD_UNIT=vcpud-autoscale.service', about];
}

/** Follows the journal. Returns a function that ends it. */
export function followJournal(
    machine: string, access: Access, onEntries: (entries: Entry[]) => void,
    onEnd: (error: CallError | null) => void,
): () => void {
    let buffer = '';
    let isClosed = false;
    const superuser = access === 'administrator' ? 'require' as const : undefined;
    const process = cockpit.spawn(commandFor(machine), { err: 'message', ...(superuser && { superuser }) });
    void process.stream(data => {
        const [complete, rest] = lines(buffer + data);
        buffer = rest;
        const entries = complete.map(line => entryOf(line, machine)).filter(entry => entry !== undefined);
        if (entries.length) onEntries(entries);
    });
    const end = (error: CallError | null) => { if (!isClosed) onEnd(error); };
    process.then(() => end(null), (error: unknown) => end(CallError.of(error)));
    return () => {
        isClosed = true;
        // Without a reason, only its output is closed.
        process.close('terminated');
    };
}
