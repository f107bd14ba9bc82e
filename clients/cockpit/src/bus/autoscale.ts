// Owns the conversation with vcpud-autoscale about one machine. Reading does not start that service; enable() does.
import { Autoscale } from '../generated/interfaces';
import type { Explanation, Limits } from '../model/autoscale';
import { shortName } from '../model/errors';
import { oneAtATime } from '../model/one-at-a-time';
import type { Permission } from '../model/permission';
import { CallError, number, patiently, plain, Service, text, watchName } from './client';
import type { Access } from './client';

const NAME = 'org.vcpud1.Autoscale';
const PATH = '/org/vcpud1/autoscale';

export interface Settings { min: number; max: number; mode: 'on' | 'observe' }

/** "absent": the service does not run. "off": it does not scale the machine. */
export type Scaling =
    | { kind: 'unknown' | 'absent' }
    | { kind: 'off'; permission: Permission | undefined }
    | { kind: 'scaled'; explanation: Explanation; permission: Permission | undefined }
    | { kind: 'failed'; error: CallError };

/** While the service does not answer, the scaling is the last known one. */
export interface ScalingState { scaling: Scaling; isSilent: boolean }

export class AutoscaleLink {
    private state: ScalingState = { scaling: { kind: 'unknown' }, isSilent: false };
    private service: Service | null = null;
    private isOwned = false;
    /** The last limits that the service had for the machine. */
    limits: Limits | undefined;
    private readonly listeners = new Set<() => void>();

    private unwatch: (() => void) | null = null;

    constructor(private readonly machine: string) {}

    /** Follows the service while there is a listener. */
    readonly subscribe = (listener: () => void): (() => void) => {
        this.listeners.add(listener);
        this.unwatch ??= watchName(NAME, isOwned => {
            if (!this.unwatch) return;
            if (isOwned) this.open();
            else this.update({ kind: 'absent' });
        });
        return () => {
            this.listeners.delete(listener);
            if (this.listeners.size === 0) this.close();
        };
    };

    private close(): void {
        this.unwatch?.();
        this.unwatch = null;
        this.service?.close();
        this.service = null;
    }

    readonly current = (): ScalingState => this.state;

    /** Reads the last decision again. */
    readonly refresh = (): void => void this.explain();

    private readonly explain = oneAtATime(async () => {
        if (!this.service || !this.isOwned) return;
        const tellLate = () => { if (this.isOwned) this.set({ ...this.state, isSilent: true }); };
        const scaling = await patiently(this.read(this.service), tellLate);
        if (this.isOwned) this.update(scaling);
    });

    private async read(service: Service): Promise<Scaling> {
        try {
            const [values] = await service.call(Autoscale, PATH, 'Explain', [this.machine]);
            const explanation = plain<Explanation>(values);
            if (explanation.mode === 'off') return { kind: 'off', permission: await this.can('enable', service) };
            return { kind: 'scaled', explanation, permission: await this.can('disable', service) };
        } catch (caught) {
            const error = CallError.of(caught);
            if (shortName(error.code) !== 'NoSuchMachine') return { kind: 'failed', error };
            return { kind: 'off', permission: await this.can('enable', service) };
        }
    }

    /** Returns whether the user can turn scaling on or off. It is asked again when the other one is possible. */
    private async can(operation: 'enable' | 'disable', service: Service): Promise<Permission | undefined> {
        const { scaling } = this.state;
        if ((scaling.kind === 'off' && operation === 'enable') || (scaling.kind === 'scaled' && operation === 'disable')) {
            return scaling.permission;
        }
        try {
            const [permission] = await service.call(Autoscale, PATH, 'CanManage', [this.machine, operation]);
            return permission as Permission;
        } catch {
            return undefined;
        }
    }

    async enable({ min, max, mode }: Settings, access: Access): Promise<void> {
        const options = { min: number(min), max: number(max), mode: text(mode) };
        await this.open().call(Autoscale, PATH, 'Enable', [this.machine, options], access);
        await this.explain();
    }

    async disable(access: Access): Promise<void> {
        await this.open().call(Autoscale, PATH, 'Disable', [this.machine], access);
        await this.explain();
    }

    private open(): Service {
        this.service ??= new Service(NAME, PATH, {
            onOwner: owner => {
                this.isOwned = owner !== null;
                // The form for a service that starts stays, because the user can be typing.
                if (owner) this.refresh();
                else this.update({ kind: 'absent' });
            },
            onSignal: signal => {
                // A hidden page reads the decision when it is shown.
                if (signal.name === 'Decided' && signal.args[0] === this.machine && !cockpit.hidden) this.refresh();
            },
            onClose: () => {
                this.service = null;
                this.isOwned = false;
                if (this.unwatch) this.update({ kind: 'absent' });
            },
        });
        return this.service;
    }

    private update(scaling: Scaling): void {
        if (scaling.kind === 'scaled') {
            const { min, max } = scaling.explanation;
            if (min !== undefined && max !== undefined) this.limits = { min, max };
        }
        this.set({ scaling, isSilent: false });
    }

    private set(state: ScalingState): void {
        this.state = state;
        this.listeners.forEach(listener => listener());
    }
}
