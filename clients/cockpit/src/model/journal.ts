// Owns the lines of the journal about a machine: from the JSON of journalctl(1) to entries. Pure.

export interface Entry {
    /** The position in the journal, which is unique. */
    cursor: string;
    /** Milliseconds since the epoch. */
    time: number;
    text: string;
    isProblem: boolean;
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
    const name = textOf(fields.VM_NAME ?? fields.MACHINE);
    if (name !== machine && !message.startsWith(`${machine}: `)) return undefined;
    return {
        cursor: textOf(fields.__CURSOR),
        time: Number(fields.__REALTIME_TIMESTAMP) / 1000,
        text: message.startsWith(`${machine}: `) ? message.slice(machine.length + 2) : message,
        isProblem: Number(fields.PRIORITY) <= 4,
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
