// Owns the declarations of the parts of Cockpit's JavaScript that the page uses. Cockpit loads ../base1/cockpit.js at
// run time; version 287 and later have these parts.

declare namespace cockpit {
    interface BasicError {
        /** A code of Cockpit such as "not-found", if the call did not reach the service. */
        problem: string | null;
        message: string;
        /** The name of a D-Bus error. */
        name?: string | null;
    }

    /** A promise of Cockpit: then() and catch() pass only one argument, done() and fail() pass all. */
    interface Deferred<T> extends Promise<T> {
        stream(callback: (data: string) => void): Deferred<T>;
        close(problem?: string): void;
    }

    interface Match { path?: string; path_namespace?: string; interface?: string; member?: string; arg0?: string }

    type SignalCallback = (path: string, name: string, signal: string, args: unknown[] | null) => void;

    interface DBusClient {
        call(path: string, name: string, method: string, args: unknown[],
            options?: { type?: string; flags?: string; timeout?: number }): Promise<unknown[]>;
        subscribe(match: Match, callback: SignalCallback): { remove(): void };
        addEventListener(event: 'close', callback: (event: unknown, options: { problem?: string }) => void): void;
        addEventListener(event: 'owner', callback: (event: unknown, owner: string | null) => void): void;
        close(problem?: string): void;
    }

    interface Location {
        path: string[];
        options: Record<string, string>;
        go(path: string[], options?: Record<string, string>): void;
        encode(path: string[], options?: Record<string, string>): string;
    }

    interface Api {
        dbus(name: string | null, options: { bus: 'system'; superuser?: 'require' }): DBusClient;
        spawn(command: string[], options?: { superuser?: 'require'; err?: 'message' | 'out'; environ?: string[] }): Deferred<string>;
        location: Location;
        /** True while the shell of Cockpit hides the frame of the page. */
        hidden: boolean;
        addEventListener(event: 'locationchanged' | 'visibilitychange', callback: () => void): void;
        removeEventListener(event: 'locationchanged' | 'visibilitychange', callback: () => void): void;
        gettext(text: string): string;
        ngettext(one: string, many: string, count: number): string;
        format(text: string, ...values: (string | number)[]): string;
        jump(path: string, host?: string): void;
        transport: { wait(callback: () => void): void };
        language: string;
        user(): Promise<{ id: number; name: string }>;
    }
}

declare const cockpit: cockpit.Api;

/** Style sheets, which esbuild bundles. */
declare module '*.css';
