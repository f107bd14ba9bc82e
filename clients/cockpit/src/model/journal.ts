// Owns the lines of the journal about a machine: from the JSON of journalctl(1) to entries. Pure.

export interface Entry {
    /** The position in the journal, which is unique. */
    cursor: string;
    /** Milliseconds since the epoch. */
    time: number;
    text: string;
    isProblem: boolean;
    /** The call of a user that polkit authorized, if the entry is about one. */
    request: Request | undefined;
}

/** A call: the operation, the user, and the arguments that say something, as "vcpus 4, until started". */
export interface Request { operation: string; uid: number; values: string }

/** The machine itself, which the page shows elsewhere. */
const ABOUT_MACHINE = ['owner', 'uuid'];

/** Returns the call that the fields of an entry describe: OPERATION, REQUEST_UID, and VALUES as KEY="VALUE" .... */
function requestOf(fields: Record<string, unknown>): Request | undefined {
    const [operation, values] = [textOf(fields.OPERATION), textOf(fields.VALUES)];
    if (!operation || !values) return undefined;
    const pairs = [...values.matchAll(/([\w-]+)="((?:[^"\\]|\\.)*)"/g)];
    const shown = pairs.filter(([, key = '', value = '']) => !ABOUT_MACHINE.includes(key) && value !== '' && value !== 'false');
    return {
        operation, uid: Number(fields.REQUEST_UID),
        values: shown.map(([, key, value]) => `${key} ${value}`).join(', '),
    };
}

/** How many entries are kept. */
export const ENTRIES = 50;

/** The journal encodes a field with bytes that are not UTF-8 as a list of numbers. */
function textOf(field: unknown): string {
    if (typeof field === 'string') return field;
    return Array.isArray(field) ? new TextDecoder().decode(Uint8Array.from(field as number[])) : '';
}

/** Returns an entry, or undefined if a line is not an entry about the machine. */
export function entryOf(line: string, machine: string): Entry | undefined {
    let fields: Record<string, unknown>;
    try {
        fields = JSON.parse(line) as Record<string, unknown>;
    } catch {
        return undefined;
    }
    const message = textOf(fields.MESSAGE);
    if (textOf(fields.VM_NAME) !== machine) return undefined;
    return {
        cursor: textOf(fields.__CURSOR),
        time: Number(fields.__REALTIME_TIMESTAMP) / 1000,
        text: message.startsWith(`${machine}: `) ? message.slice(machine.length + 2) : message,
        isProblem: Number(fields.PRIORITY) <= 4,
        request: requestOf(fields),
    };
}

/** Returns the entries with further ones, the newest first. */
export function withEntries(entries: readonly Entry[], added: readonly Entry[]): Entry[] {
    const known = new Set(entries.map(entry => entry.cursor));
    const fresh = added.filter(entry => !known.has(entry.cursor));
    return [...entries, ...fresh].sort((a, b) => b.time - a.time).slice(0, ENTRIES);
}

/** Splits a stream into complete lines, and the rest. */
export function lines(buffer: string): [string[], string] {
    const parts = buffer.split('\n');
    const rest = parts.pop() ?? '';
    return [parts, rest];
}
