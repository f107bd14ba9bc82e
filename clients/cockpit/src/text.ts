// Owns the access to translations. A text with values has $0, $1 and so on.
export const _ = (text: string): string => cockpit.gettext(text);

export const ngettext = (one: string, many: string, count: number): string => cockpit.ngettext(one, many, count);

export const format = (text: string, ...values: (string | number)[]): string => cockpit.format(text, ...values);

/** Marks a text for translation that is translated later. */
export const N_ = (text: string): string => text;

/** Returns vCPU numbers as "vCPU 3" or "vCPUs 1-3, 5". */
export function namesOf(vcpus: readonly number[]): string {
    return format(ngettext('vCPU $0', 'vCPUs $0', vcpus.length), ranges(vcpus));
}

/** Returns numbers as ranges such as "1-3, 5". */
export function ranges(numbers: readonly number[]): string {
    const runs: [number, number][] = [];
    for (const next of [...new Set(numbers)].sort((a, b) => a - b)) {
        const run = runs.at(-1);
        if (run && run[1] + 1 === next) run[1] = next;
        else runs.push([next, next]);
    }
    return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(', ');
}

/** Returns a number of vCPUs as "1 vCPU" or "4 vCPUs". */
export const countOf = (count: number): string => format(ngettext('$0 vCPU', '$0 vCPUs', count), count);
