// Owns the words about errors: from the names of D-Bus errors, the problems of Cockpit and the codes of refusals to
// advice. The text of an error comes from the service; the advice says what the user of the page can do.
import { N_, _ } from '../text';

const ERRORS: Record<string, string> = {
    NoSuchMachine: N_('The machine has ended. Go back to the list of machines.'),
    Disconnected: N_('vcpud connects again by itself. Check that the QEMU process runs and that no other client uses its QMP socket.'),
    InvalidVcpu: N_('Select all vCPUs of a core together.'),
    OutOfRange: N_('Select one of the possible numbers.'),
    NotRemovable: N_('Select a greater number. QEMU does not remove the boot CPU.'),
    NotSupported: N_('A restart of the VM with other options can be the alternative. The journal of vcpud has more details.'),
    Busy: N_('Another change or a removal of vCPUs is in progress. Wait for its end, and try again.'),
    GuestRefused: N_('Check that the guest agent runs in the guest, and try again.'),
    GuestDidNotStart: N_('The vCPUs stay. Bring them online in the guest, or install the guest agent and use it for the change.'),
    RemovalPending: N_('The guest has not released the vCPUs yet. The removal stays pending, and this page reports its end.'),
    PlacementFailed: N_('The kernel refused the setting. Correct the setting, and try again.'),
    InvalidCpuList: N_('Enter host CPUs as numbers and ranges, such as 0-3,8.'),
    CpuUnavailable: N_('Select host CPUs that exist and are online.'),
    LimitExceeded: N_('Too many calls are in progress. Wait for one to end, and try again.'),
    QmpFailed: N_('Read the reason that QEMU gives. The journal of vcpud has more details.'),
    QmpTimeout: N_('QEMU does not answer. Check whether it is stopped, and wait: the page shows vCPUs that QEMU adds later.'),
    InvalidArgs: N_('Correct the value, and try again.'),
    IOError: N_('Check whether the file system of /run is full. Nothing was changed.'),
    ServiceUnknown: N_('Install and start the service.'),
    NoReply: N_('The service ended before it answered. Look at the state of the machine before you try again.'),
};

/** The advice for errors of a change that adds or removes vCPUs, where it differs. */
const CHANGES: Record<'add' | 'remove', Record<string, string>> = {
    add: {
        GuestRefused: N_('Added vCPUs stay. Check that the guest agent runs, and bring the vCPUs online in the guest.'),
        PlacementFailed: N_('The vCPUs stay, but the kernel refused a setting. Correct the setting, and try again.'),
    },
    remove: {
        GuestRefused: N_('The guest still uses the vCPU, or its agent does not answer. Reduce the load or the pins of the vCPU in the guest, check the agent, and try again.'),
    },
};

/** What a call was to do with vCPUs. */
export type Direction = keyof typeof CHANGES;

const PREFIXES = ['org.vcpud1.Error.', 'org.freedesktop.DBus.Error.'];

/** Returns the last part of the name of an error. */
export function shortName(code: string): string {
    const prefix = PREFIXES.find(one => code.startsWith(one));
    return prefix ? code.slice(prefix.length) : code;
}

const DENIED = ['AccessDenied', 'InteractiveAuthorizationRequired'];

/** Returns whether polkit denied the call, so that administrative access can help. */
export const isDenied = (code: string): boolean => DENIED.includes(shortName(code));

/** Returns whether Cockpit has no administrative access to give. */
const isWithoutAdministrator = (code: string): boolean => code === 'access-denied';

/** Returns whether something else is in progress. */
export const isBusy = (code: string): boolean => shortName(code) === 'Busy';

const ABSENT = ['ServiceUnknown', 'NameHasNoOwner', 'not-found'];

/** Returns whether a call changed nothing, because no service took it. */
export const isAbsent = (code: string): boolean => ABSENT.includes(shortName(code));

const INTERRUPTED = [
    ...['NoReply', 'Timeout', 'TimedOut', 'Disconnected'].map(name => `org.freedesktop.DBus.Error.${name}`),
    'disconnected', 'terminated',
];

/**
 * Returns whether the result of a call is not known, because the service ended, or the connection
 * to it. org.vcpud1.Error.Disconnected is none: the service runs, and QEMU does not answer.
 */
export const isInterrupted = (code: string): boolean => INTERRUPTED.includes(code);

/** Returns whether an error is a problem of Cockpit, which has no text of a service. */
export const isProblem = (code: string): boolean => !code.includes('.');

/** Returns the advice for an error, or an empty text. A change of the number of vCPUs has a direction. */
export function adviceFor(code: string, direction?: Direction): string {
    if (isDenied(code)) return _('Use administrative access, or ask an administrator for a rule of polkit.');
    if (isWithoutAdministrator(code)) {
        return _('Turn on administrative access at the top of Cockpit, and try again. Your account needs the right to become administrator.');
    }
    if (code === 'conflict') return _('Another client changed the number of vCPUs in the meantime. Check the plan, and try again.');
    if (code === 'not-found') return _('The service is not installed, or it cannot start. Install its package, or read its journal.');
    if (code === 'disconnected' || code === 'terminated') return _('The connection to the host was lost. Log in to Cockpit again.');
    const name = shortName(code);
    const advice = (direction && CHANGES[direction][name]) ?? ERRORS[name];
    return advice ? _(advice) : '';
}

/** Returns why the first read of the machines failed, and what the user can do. */
export function causeOf(code: string): string {
    if (code === 'disconnected' || code === 'terminated') return adviceFor(code);
    if (isDenied(code) || isWithoutAdministrator(code)) {
        return _('The system bus does not let your account call vcpud. Check the files of the bus policy: /usr/share/dbus-1/system.d/org.vcpud1.conf must be installed.');
    }
    if (isAbsent(code) || code.includes('.Spawn.')) {
        return _('The service is not installed, or it cannot start. Install the package vcpud, or read its journal: journalctl -u vcpud');
    }
    if (isInterrupted(code)) return _('vcpud ended before it answered. Try again, or read its journal: journalctl -u vcpud');
    return adviceFor(code) || _('vcpud runs, and the page cannot read its machines. Try again, or read its journal: journalctl -u vcpud');
}

const REASONS: Record<string, string> = {
    'not-supported': N_('The guest or QEMU does not support the removal. The guest needs support for hot-unplug of CPUs.'),
    'in-use': N_('The guest uses the CPU. End or move the programs that are bound to it in the guest, and try again.'),
    'busy': N_('The guest is busy with the CPU. Try again when the guest has less load.'),
    'dependency': N_('Another device of the guest depends on the CPU. Remove that device first.'),
    'guest-failed': N_('The guest gives no reason. The log of its kernel can have more details.'),
    'no-guest': N_('No operating system of the guest has taken charge of the CPUs. Try again when the guest has booted.'),
    'migrating': N_('QEMU refuses during a migration. Try again after it.'),
};

/** Returns why a removal was refused, and what to do. Other codes have the reason of the service. */
export function explainRefusal({ reason, code }: { reason: string; code: string }): string {
    const known = REASONS[code];
    return known ? _(known) : reason;
}
