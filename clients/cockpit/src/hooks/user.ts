// Owns the hook for the text about a user.
import { useEffect, useState } from 'react';

import { userName } from '../bus/users';
import { NO_USER } from '../model/fleet';
import { _, format } from '../text';

/** Returns the name of a user with the uid, or the uid alone. The text is empty if there is no user. */
export function useUser(uid: number): string {
    const [known, setKnown] = useState({ uid: NO_USER, name: '' });
    useEffect(() => {
        let isCurrent = true;
        if (uid !== NO_USER) void userName(uid).then(name => { if (isCurrent) setKnown({ uid, name }); });
        return () => { isCurrent = false; };
    }, [uid]);
    if (uid === NO_USER) return '';
    return known.uid === uid && known.name ? format(_('$0 (uid $1)'), known.name, uid) : format(_('uid $0'), uid);
}
