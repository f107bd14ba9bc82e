// Owns the samples of all machines: one call a second while the page is visible, and none otherwise. It must not know
// the components.
import { extended } from '../model/usage';
import type { Counters, History } from '../model/usage';
import { plain } from './client';
import type { Store } from './store';

/** The time between two samples, in milliseconds. */
const INTERVAL = 1000;

/** The samples of all machines. */
export class Statistics {
    /** The histories by object path. */
    private histories: ReadonlyMap<string, History> = new Map();
    /** The generations of the machines that the histories belong to. */
    private generations: ReadonlyMap<string, number> = new Map();
    private timer: number | undefined;
    private isAsking = false;
    private readonly listeners = new Set<() => void>();

    constructor(private readonly store: Store) {
        cockpit.addEventListener('visibilitychange', this.review);
        store.subscribe(this.review);
    }

    readonly subscribe = (listener: () => void): (() => void) => {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    };

    readonly current = (): ReadonlyMap<string, History> => this.histories;

    /** An idle service without machines can end, so that it is not asked. */
    private isWanted(): boolean {
        const { status, fleet } = this.store.current();
        const isRunning = status.kind === 'ready' || status.kind === 'silent';
        return !cockpit.hidden && isRunning && fleet.machines.size > 0;
    }

    private readonly review = (): void => {
        this.forget();
        if (!this.isWanted()) {
            window.clearTimeout(this.timer);
            this.timer = undefined;
        } else if (this.timer === undefined && !this.isAsking) {
            void this.ask();
        }
    };

    /** Removes the histories of machines that have ended. Another one can have the same path later. */
    private forget(): void {
        const { machines } = this.store.current().fleet;
        const kept = [...this.histories].filter(([path]) =>
            machines.has(path) && machines.get(path)?.generation === this.generations.get(path));
        if (kept.length < this.histories.size) this.histories = new Map(kept);
    }

    private async ask(): Promise<void> {
        this.isAsking = true;
        const begin = performance.now();
        try {
            const [machines] = await this.store.statistics();
            const samples = Object.entries(machines).map(([path, [machine, vcpus]]): [string, History] => {
                const sample = { machine: plain<Counters>(machine), vcpus: vcpus.map(vcpu => plain<Counters>(vcpu)) };
                return [path, extended(this.histories.get(path), sample)];
            });
            this.histories = new Map(samples);
            const { machines: known } = this.store.current().fleet;
            this.generations = new Map([...known].map(([path, { generation }]) => [path, generation]));
            this.listeners.forEach(listener => listener());
        } catch {
            // The state of the connection reports a service that does not answer. The next sample comes in a second.
        }
        this.isAsking = false;
        this.timer = undefined;
        if (!this.isWanted()) return;
        const wait = Math.max(0, INTERVAL - (performance.now() - begin));
        this.timer = window.setTimeout(() => void this.ask(), wait);
    }
}
