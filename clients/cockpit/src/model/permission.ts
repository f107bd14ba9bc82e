// Owns what polkit would answer to a call of the user, as the methods Can...() return it. Pure.

/** "challenge": polkit would ask for a password. "na": the call is not possible now. */
export type Permission = 'yes' | 'no' | 'challenge' | 'na';

/** Returns whether only administrative access makes the call possible. */
export const needsAdministrator = (permission: Permission | undefined): boolean =>
    permission === 'no' || permission === 'challenge';
