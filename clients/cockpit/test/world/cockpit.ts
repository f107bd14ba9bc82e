// Owns cockpit-ws: the web server of Cockpit on the loopback interface, with one session and without a login.
import fs from 'node:fs';
import path from 'node:path';

import { listening, Process } from './processes';

export interface Session {
    /** The line of sh that runs the bridge. */
    bridge: string;
    /** The directory of the user, to which the server also belongs. */
    home: string;
    /** Further variables of the environment. */
    env?: NodeJS.ProcessEnv;
    /** Returns the command that runs a program as the user. */
    as?: (command: string, ...args: string[]) => [string, string[]];
}

/** Starts cockpit-ws at a port. It ends with its session, some time after the last page is closed. */
export async function startWebServer(port: number, { bridge, home, env, as }: Session): Promise<Process> {
    // Without this end, the server would begin no other session.
    const session = path.join(home, 'session');
    fs.writeFileSync(session, `#!/bin/sh\n${bridge}\nkill $PPID\n`, { mode: 0o755 });
    const server = ['/usr/lib/cockpit/cockpit-ws', '--no-tls', '--address=127.0.0.1', `--port=${port}`, `--local-session=${session}`];
    const [command = '', ...args] = server;
    const cockpit = new Process('cockpit-ws', ...(as ? as(command, ...args) : [command, args] as const), {
        cwd: home,
        env: {
            ...process.env,
            HOME: home, XDG_RUNTIME_DIR: home, XDG_CONFIG_HOME: home,
            // No files of the machine's own Cockpit.
            XDG_CONFIG_DIRS: home,
            ...env,
        },
    });
    await listening(port);
    return cockpit;
}
