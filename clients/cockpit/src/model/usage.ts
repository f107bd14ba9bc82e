// Owns the use of CPUs: from two samples of counters to shares of host CPUs, and the last minutes of them. Pure.
import type { Machine } from '../generated/interfaces';

export type Counters = Machine['keys']['GetStatistics'];

/** One sample of a machine. */
export interface Sample { machine: Counters; vcpus: Counters[] }

/**
 * The use between two samples, in host CPUs: 1 is one host CPU all of the time. A value is undefined if the service has
 * not both counters.
 */
export interface Use { used: number | undefined; stolen: number | undefined; throttled: number | undefined }

/** A point of the charts. */
export interface Point extends Use {
    /** The time of the sample, in seconds of the monotonic clock of the host. */
    time: number;
    vcpus: number;
}

export interface VcpuUse extends Use { hostCpu: number | undefined }

/** The last minutes of a machine. */
export interface History {
    last: Sample;
    points: readonly Point[];
    vcpus: ReadonlyMap<number, VcpuUse>;
}

/** How long points are kept, in seconds. */
export const WINDOW = 300;

const UNKNOWN: Use = { used: undefined, stolen: undefined, throttled: undefined };

/** Returns the history with a further sample. A sample that is not later than the last one changes nothing. */
export function extended(history: History | undefined, sample: Sample): History {
    if (!history) return { last: sample, points: [], vcpus: new Map(hostCpus(sample)) };
    const time = seconds(sample);
    const elapsed = time - seconds(history.last);
    if (elapsed <= 0) return history;
    const before = new Map(history.last.vcpus.map(counters => [counters.id, counters]));
    const vcpus = new Map(sample.vcpus.map(counters => {
        const use = useBetween(before.get(counters.id), counters, elapsed);
        return [counters.id ?? 0, { ...use, hostCpu: counters['host-cpu'] }];
    }));
    const total = [...vcpus.values()].reduce<Use>(sum, UNKNOWN);
    const point = { ...total, time, vcpus: sample.machine.vcpus ?? vcpus.size };
    return { last: sample, points: [...history.points.filter(old => old.time > time - WINDOW), point], vcpus };
}

function* hostCpus(sample: Sample): Generator<[number, VcpuUse]> {
    for (const counters of sample.vcpus) yield [counters.id ?? 0, { ...UNKNOWN, hostCpu: counters['host-cpu'] }];
}

const seconds = (sample: Sample): number => (sample.machine['timestamp-usec'] ?? 0) / 1e6;

/** Returns the sum of the known values. */
function sum(a: Use, b: Use): Use {
    const add = (x: number | undefined, y: number | undefined) => (x === undefined ? y : x + (y ?? 0));
    return { used: add(a.used, b.used), stolen: add(a.stolen, b.stolen), throttled: add(a.throttled, b.throttled) };
}

function useBetween(before: Counters | undefined, after: Counters, elapsed: number): Use {
    // A counter that decreased belongs to a new thread.
    const share = (key: 'usage-usec' | 'wait-usec' | 'throttled-usec') => {
        const [first, last] = [before?.[key], after[key]];
        return first === undefined || last === undefined ? undefined : Math.max(0, (last - first) / 1e6 / elapsed);
    };
    return { used: share('usage-usec'), stolen: share('wait-usec'), throttled: share('throttled-usec') };
}

/** Returns the time that a chart of these points shows: whole minutes, in seconds. */
export function spanOf(points: readonly Point[]): number {
    const elapsed = (points.at(-1)?.time ?? 0) - (points[0]?.time ?? 0);
    return Math.min(WINDOW, Math.max(1, Math.ceil(elapsed / 60)) * 60);
}

/** Returns the last point of a machine, if two samples exist. */
export const latest = (history: History | undefined): Point | undefined => history?.points.at(-1);

/** Returns a share of one host CPU in percent, without decimals. */
export const percent = (share: number | undefined, language: string): string =>
    (share === undefined ? '–' : `${Math.round(share * 100).toLocaleString(language)} %`);

/** Returns a number of host CPUs with one decimal. */
export const cpus = (share: number | undefined, language: string): string =>
    share?.toLocaleString(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 }) ?? '–';
