// Owns mount namespaces: a program in one finds files of a world in the place of those of the machine.

/** A directory of the world, and the directory that it replaces. */
export type Bind = [from: string, to: string];

const script = `
    while [ "$1" != -- ]; do mkdir -p "$2" && mount --bind "$1" "$2" || exit; shift 2; done
    shift && exec "$@"
`;

/** Returns the command that runs a program in a mount namespace of its own. */
export function inside(binds: Bind[], command: string, ...args: (string | number)[]): [string, string[]] {
    const shell = ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', ...binds.flat(), '--', command];
    return ['unshare', [...shell, ...args.map(String)]];
}
