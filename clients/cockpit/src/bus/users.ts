// Owns the names of the users of the host, which getent(1) knows.

/** One question for each uid: a name does not change while the page is open. */
const asked = new Map<number, Promise<string>>();

/** Returns the name of a user, or an empty text if the host has none. */
export function userName(uid: number): Promise<string> {
    const known = asked.get(uid);
    if (known) return known;
    const name = cockpit.spawn(['getent', 'passwd', String(uid)], { err: 'message' })
        .then(entry => entry.split(':')[0] ?? '', () => '');
    asked.set(uid, name);
    return name;
}
