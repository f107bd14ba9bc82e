// Owns the use of CPUs: from two samples of counters to shares of host CPUs, and the last minutes of them. Pure.
import type { Machine } from '../generated/interfaces';

export type Counters = Machine['keys']['GetStatistics'];

/** One sample of a machine. */
export interface Sample { machine: Counters; vcpus: Counters[] }

/** The use between two samples, in host CPUs: 1 is one host CPU all of the time. */
export interface Use { used: number; stolen: number; throttled: number }

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

const NO_USE: Use = { used: 0, stolen: 0, throttled: 0 };

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
    const total = [...vcpus.values()].reduce<Use>(sum, NO_USE);
    const point = { ...total, time, vcpus: sample.machine.vcpus ?? vcpus.size };
    return { last: sample, points: [...history.points.filter(old => old.time > time - WINDOW), point], vcpus };
}

function* hostCpus(sample: Sample): Generator<[number, VcpuUse]> {
    for (const counters of sample.vcpus) yield [counters.id ?? 0, { ...NO_USE, hostCpu: counters['host-cpu'] }];
}

const seconds = (sample: Sample): number => (sample.machine['timestamp-usec'] ?? 0) / 1e6;

const sum = (a: Use, b: Use): Use =>
    ({ used: a.used + b.used, stolen: a.stolen + b.stolen, throttled: a.throttled + b.throttled });

function useBetween(before: Counters | undefined, after: Counters, elapsed: number): Use {
    // A counter that decreased belongs to a new thread.
    const share = (key: 'usage-usec' | 'wait-usec' | 'throttled-usec') =>
        before?.[key] === undefined ? 0 : Math.max(0, ((after[key] ?? 0) - before[key]) / 1e6 / elapsed);
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
export const percent = (share: number): string => `${Math.round(share * 100)} %`;

/** Returns a number of host CPUs with one decimal. */
export const cpus = (share: number, language: string): string =>
    share.toLocaleString(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
