// Owns the tests of the pure code: from replies and signals of the service to what the page shows.
import './cockpit';

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { CallError } from '../../src/bus/client';
import { limitsOf, reasonOf } from '../../src/model/autoscale';
import { begun, informed, isOutdated, observed, phaseOf, REMOVAL_PENDING } from '../../src/model/change';
import type { Change, VcpuEvent } from '../../src/model/change';
import { adviceFor, causeOf, explainRefusal, isDenied, isInterrupted } from '../../src/model/errors';
import { added, changed, fleetOf, MACHINE, MANAGER, removed, sorted } from '../../src/model/fleet';
import { entryOf, lines, withEntries } from '../../src/model/journal';
import { oneAtATime } from '../../src/model/one-at-a-time';
import { countOfKey, isSameQuestion, nearestCount, numberIn } from '../../src/model/plan';
import { cpus, extended, latest, percent, spanOf, WINDOW } from '../../src/model/usage';
import type { History } from '../../src/model/usage';
import { affinityOf, bandwidthFor, commonPin, cpuListOf, isSameList, percentOf, presenceOf, schedulerOf } from '../../src/model/vcpus';
import { countOf, namesOf, ranges } from '../../src/text';

test('numbers of vCPUs are ranges', () => {
    assert.equal(ranges([5, 1, 2, 3, 8, 7]), '1-3, 5, 7-8');
    assert.equal(ranges([]), '');
    assert.equal(namesOf([3]), 'vCPU 3');
    assert.equal(namesOf([1, 0]), 'vCPUs 0-1');
    assert.equal(countOf(1), '1 vCPU');
});

test('the machines follow the signals', () => {
    const machine = { Name: 'web10', Vcpus: 1 };
    let fleet = fleetOf([['/', { [MANAGER]: { Version: '1', ConfigurationErrors: [] } }], ['/a', { [MACHINE]: machine }]]);
    fleet = added(fleet, '/b', { [MACHINE]: { Name: 'web9', Vcpus: 2 } });
    fleet = changed(fleet, '/a', MACHINE, { Vcpus: 4 });
    fleet = changed(fleet, '/unknown', MACHINE, { Vcpus: 4 });
    fleet = changed(fleet, '/', MANAGER, { ConfigurationErrors: ['x'] });
    assert.deepEqual(sorted(fleet).map(({ Name, Vcpus }) => [Name, Vcpus]), [['web9', 2], ['web10', 4]]);
    assert.deepEqual([fleet.version, fleet.configurationErrors], ['1', ['x']]);
    assert.deepEqual(sorted(removed(fleet, '/a', [MACHINE])).map(({ path }) => path), ['/b']);
    assert.equal(removed(fleet, '/a', ['org.example']), fleet);
});

test('a machine with another QEMU process is another machine', () => {
    const objects = (values: object) => [['/a', { [MACHINE]: { Name: 'web', Leader: 7, Uuid: 'u', ...values } }]] as const;
    const first = fleetOf([...objects({})]);
    const generation = (fleet = first) => fleet.machines.get('/a')?.generation;
    // vcpud starts again, and finds the process later.
    const again = fleetOf([...objects({ Leader: 0, Uuid: '' })], first);
    assert.equal(generation(again), generation());
    assert.equal(generation(changed(again, '/a', MACHINE, { Leader: 7 })), generation());
    assert.notEqual(generation(changed(again, '/a', MACHINE, { Leader: 8 })), generation());
    assert.notEqual(generation(fleetOf([...objects({ Uuid: 'v' })], first)), generation());
    assert.equal(generation(added(first, ...objects({})[0])), generation());
    assert.notEqual(generation(added(removed(first, '/a', [MACHINE]), ...objects({})[0])), generation());
    assert.deepEqual([...fleetOf([], first).machines], []);
});

/** Returns a sample at a time in seconds, with the used and stolen seconds of one vCPU. */
const sample = (time: number, used: number, stolen = 0, id = 0) => ({
    machine: { 'timestamp-usec': time * 1e6, 'vcpus': 1 },
    vcpus: [{ id, 'usage-usec': used * 1e6, 'wait-usec': stolen * 1e6, 'host-cpu': 3 }],
});

test('two samples are the use of host CPUs', () => {
    const first = extended(undefined, sample(10, 5));
    assert.equal(latest(first), undefined);
    const history = extended(first, sample(12, 6, 0.5));
    assert.deepEqual(latest(history), { time: 12, vcpus: 1, used: 0.5, stolen: 0.25, throttled: undefined });
    assert.equal(history.vcpus.get(0)?.hostCpu, 3);
    assert.equal(extended(history, sample(12, 7)), history);
});

test('a counter that begins again is no negative use', () => {
    const history = extended(extended(undefined, sample(1, 50)), sample(2, 0));
    assert.equal(latest(history)?.used, 0);
    // Another vCPU has only one sample.
    assert.equal(latest(extended(history, sample(3, 100, 0, 1)))?.used, undefined);
});

test('a counter that the service does not have is no use of 0', () => {
    const without = (time: number) => ({ machine: { 'timestamp-usec': time * 1e6 }, vcpus: [{ id: 1 }, ...sample(time, time).vcpus] });
    const history = extended(extended(undefined, without(1)), without(2));
    assert.deepEqual(history.vcpus.get(1), { used: undefined, stolen: undefined, throttled: undefined, hostCpu: undefined });
    assert.equal(latest(history)?.used, 1);
    assert.deepEqual([percent(undefined, 'en'), percent(0.126, 'en')], ['–', '13 %']);
    assert.deepEqual([cpus(undefined, 'en'), cpus(1.25, 'de')], ['–', '1,3']);
});

test('old points are dropped, and the chart shows whole minutes', () => {
    let history: History | undefined;
    for (let time = 0; time <= WINDOW + 60; time++) history = extended(history, sample(time, time));
    assert.equal(history?.points.length, WINDOW);
    assert.equal(spanOf(history.points), WINDOW);
    assert.equal(spanOf(history.points.slice(0, 90)), 120);
    assert.equal(spanOf([]), 60);
});

const after = (change: Change, ...events: VcpuEvent[]) => events.reduce(observed, change);
const event = (kind: 'added' | 'started' | 'removed', vcpu: number): VcpuEvent => ({ kind, vcpu, cause: 'request', uid: 0 });
const refusal: VcpuEvent = { kind: 'refused', vcpu: 2, cause: 'request', uid: 0, refusal: { reason: 'no', code: 'busy' } };

test('an addition is complete when the guest has started the vCPUs', () => {
    const change = after(begun(4, [2, 3], []), event('added', 2), event('added', 3), event('started', 2), event('added', 9));
    assert.deepEqual([...change.added], [2, 3]);
    assert.equal(phaseOf(change), 'running');
    assert.equal(phaseOf({ ...change, result: 'done' }), 'starting');
    assert.equal(phaseOf({ ...after(change, event('started', 3)), result: 'done' }), 'complete');
});

test('an addition without evidence of a start is complete with the call', () => {
    const change = { ...begun(4, [2, 3], []), result: 'done' } as const;
    assert.equal(phaseOf(informed(change, [{ id: 2, present: false }, { id: 3, present: true }])), 'starting');
    assert.equal(phaseOf(informed(change, [{ id: 2, present: true, started: false }, { id: 3, present: true }])), 'starting');
    assert.equal(phaseOf(informed(change, [{ id: 2, present: true }, { id: 3, present: true }])), 'complete');
});

test('a removal can end after the call, or be refused', () => {
    const pending = { ...begun(1, [], [1, 2]), result: { error: new CallError(REMOVAL_PENDING, '') } };
    assert.equal(phaseOf(after(pending, event('removed', 1))), 'pending');
    assert.equal(phaseOf(after(pending, event('removed', 1), event('removed', 2))), 'complete');
    assert.equal(phaseOf(after(pending, event('removed', 1), refusal)), 'failed');
    assert.equal(phaseOf(after(pending, refusal, event('removed', 1), event('removed', 2))), 'complete');
});

test('a success is over when the machine has another number', () => {
    const change = begun(4, [2, 3], []);
    assert.ok(!isOutdated(change, 2));
    assert.ok(!isOutdated({ ...change, result: 'done' }, 4));
    assert.ok(isOutdated({ ...change, result: 'done' }, 6));
    const pending = { ...begun(1, [], [1]), result: { error: new CallError(REMOVAL_PENDING, '') } };
    assert.ok(!isOutdated(pending, 5));
    assert.ok(isOutdated(after(pending, event('removed', 1)), 5));
    assert.ok(!isOutdated({ ...change, result: { error: new CallError('failed', '') } }, 2));
});

test('values in force differ from the desired ones only if they mean something else', () => {
    assert.ok(isSameList('0-3,8', '8,0,1,2-3'));
    assert.deepEqual(affinityOf({ 'affinity': '0-1', 'desired-affinity': '0,1' }), { actual: '0-1', desired: undefined });
    assert.deepEqual(affinityOf({ 'affinity': '0', 'desired-affinity': '1' }), { actual: '0', desired: '1' });
    assert.deepEqual(affinityOf({ 'desired-affinity': '1' }), { actual: '1', desired: undefined });
    const scheduler = { 'scheduler': 'other', 'priority': 0, 'desired-scheduler': 'fifo', 'desired-priority': 5 };
    assert.deepEqual(schedulerOf(scheduler), { actual: 'other', desired: 'fifo 5' });
});

test('vCPUs with different pins have no common one', () => {
    const pins: [number, string][] = [[1, '0-1'], [2, '0-1'], [3, '4']];
    assert.equal(commonPin(pins, [1, 2]), '0-1');
    assert.equal(commonPin(pins, [0, 5]), '');
    assert.equal(commonPin(pins, [0, 1]), undefined);
    assert.equal(commonPin(pins, [2, 3]), undefined);
});

test('vCPUs have states', () => {
    assert.equal(presenceOf({ present: false }), 'free');
    assert.equal(presenceOf({ present: true, pending: true, started: true }), 'pending');
    assert.equal(presenceOf({ present: true, started: false }), 'not-started');
    assert.equal(presenceOf({ present: true, started: true, online: false }), 'offline');
    assert.equal(presenceOf({ present: true }), 'present');
});

test('limits of the CPU time are percents', () => {
    assert.equal(percentOf({ periodUsec: 100_000, quotaUsec: -1 }), undefined);
    assert.equal(percentOf({ periodUsec: 100_000, quotaUsec: 12_500 }), 12.5);
    assert.deepEqual(bandwidthFor(50, 100_000), { periodUsec: 100_000, quotaUsec: 50_000 });
    assert.deepEqual(bandwidthFor(1, 1_000), { periodUsec: 1_000, quotaUsec: 1_000 });
    assert.deepEqual(bandwidthFor(undefined, 100_000), { periodUsec: 100_000, quotaUsec: -1 });
});

test('lists of host CPUs are checked before a call', () => {
    for (const list of ['0', '0-3', '0-3,8', '3-3']) assert.equal(cpuListOf(list), list);
    assert.equal(cpuListOf(' 0 , 2 - 3 '), '0,2-3');
    for (const list of ['', 'all', '0-', '0,', '-1', '0 1', '3-1', '1-2-3']) assert.equal(cpuListOf(list), undefined, list);
});

test('a text is a number within its limits', () => {
    assert.deepEqual(['8', ' 8', '1e1', '08'].map(text => numberIn(text, 4, 16)), [8, 8, 10, 8]);
    assert.equal(numberIn('12.5', 1, 100), 12.5);
    for (const text of ['', ' ', '-5', '3', '17', 'x', '1e']) assert.equal(numberIn(text, 4, 16), undefined, text);
    assert.deepEqual(['8', '10', '4.5'].map(text => numberIn(text, 4, 16, 4)), [8, undefined, undefined]);
});

test('a plan is one of the vCPUs that the machine has', () => {
    const question = { count: 4, vcpus: 3, pending: [1, 2] };
    assert.ok(isSameQuestion(question, { ...question, pending: [2, 1] }));
    assert.ok(!isSameQuestion(question, { ...question, count: 5 }));
    assert.ok(!isSameQuestion(question, { ...question, vcpus: 6 }));
    assert.ok(!isSameQuestion(question, { ...question, pending: [1] }));
    assert.ok(!isSameQuestion(question, { ...question, pending: [1, 3] }));
});

test('a number is a whole number of slots', () => {
    assert.equal(nearestCount(5, 16, 4), 4);
    assert.equal(nearestCount(0, 16, 4), 4);
    assert.equal(nearestCount(99, 16, 1), 16);
    assert.equal(nearestCount(NaN, 16, 1), 1);
});

test('the keys of a slider select possible numbers', () => {
    const select = (key: string) => countOfKey(key, 8, 64, 2);
    assert.deepEqual(['Home', 'End', 'PageUp', 'PageDown'].map(select), [2, 64, 14, 2]);
    assert.deepEqual(['ArrowUp', 'ArrowDown', 'ArrowRight', 'ArrowLeft'].map(select), [10, 6, 10, 6]);
    assert.equal(countOfKey('ArrowRight', 8, 64, 2, true), 6);
    assert.equal(countOfKey('PageUp', 1, 4, 1), 2);
    assert.equal(select('x'), undefined);
});

test('entries of the journal are about one machine, the newest first', () => {
    const line = (text: string, time: number, more: object = {}) =>
        JSON.stringify({ MESSAGE: text, __REALTIME_TIMESTAMP: `${time}000`, __CURSOR: text, PRIORITY: '6', VM_NAME: 'web', ...more });
    const one = entryOf(line('web: vCPU 3 added', 1), 'web');
    const two = entryOf(line('web: disconnected: x', 2, { PRIORITY: '4' }), 'web');
    assert.deepEqual(one, { cursor: 'web: vCPU 3 added', time: 1, text: 'vCPU 3 added', isProblem: false, request: undefined });
    const fields = { OPERATION: 'add', REQUEST_UID: '7', VALUES: 'vcpus="1,2" uuid="" async="false" reason="a \\"b"' };
    assert.deepEqual(entryOf(line('web: operation', 1, fields), 'web')?.request,
        { operation: 'add', uid: 7, values: 'vcpus 1,2, reason a \\"b' });
    assert.equal(two?.isProblem, true);
    assert.equal(entryOf(line('web: vCPU 3 added', 1, { VM_NAME: 'web2' }), 'web'), undefined);
    assert.equal(entryOf(line('web: vCPU 3 added', 1, { VM_NAME: undefined }), 'web'), undefined);
    assert.equal(entryOf('no JSON', 'web'), undefined);
    assert.equal(entryOf(line('', 1, { MESSAGE: [119, 58] }), 'web')?.text, 'w:');
    assert.ok(one && two);
    assert.deepEqual(withEntries([one], [two, one]).map(({ time }) => time), [2, 1]);
    assert.deepEqual(lines('a\nb\nc'), [['a', 'b'], 'c']);
});

test('errors have advice', () => {
    assert.ok(isDenied('org.freedesktop.DBus.Error.AccessDenied'));
    assert.match(adviceFor('org.vcpud1.Error.Busy'), /try again/);
    assert.ok(isInterrupted('org.freedesktop.DBus.Error.NoReply'));
    assert.ok(!isInterrupted('org.vcpud1.Error.Disconnected'));
    const refused = 'org.vcpud1.Error.GuestRefused';
    assert.match(adviceFor(refused, 'add'), /bring the vCPUs online/);
    assert.match(adviceFor(refused, 'remove'), /still uses the vCPU/);
    assert.match(adviceFor('org.vcpud1.Error.PlacementFailed', 'add'), /vCPUs stay/);
    assert.doesNotMatch(adviceFor('org.vcpud1.Error.PlacementFailed'), /vCPUs stay/);
    assert.match(adviceFor('access-denied'), /administrative access/);
    assert.equal(adviceFor('org.vcpud1.Error.Unknown'), '');
    assert.match(explainRefusal({ reason: 'x', code: 'busy' }), /busy with the CPU/);
    assert.equal(explainRefusal({ reason: 'x', code: 'later-version' }), 'x');
});

test('a failed first read has a cause', () => {
    for (const code of ['not-found', 'org.freedesktop.DBus.Error.Spawn.ChildExited']) assert.match(causeOf(code), /cannot start/);
    assert.match(causeOf('org.freedesktop.DBus.Error.AccessDenied'), /bus policy/);
    assert.match(causeOf('org.freedesktop.DBus.Error.NoReply'), /vcpud ended/);
    assert.match(causeOf('disconnected'), /connection to the host/);
    assert.match(causeOf('org.vcpud1.Error.LimitExceeded'), /Too many calls/);
    assert.match(causeOf('org.example.Error'), /cannot read/);
});

test('automatic scaling has reasons and limits', () => {
    assert.equal(reasonOf({ 'reason-code': 'in-band', 'reason': 'x' }), 'The load fits the number of vCPUs.');
    assert.equal(reasonOf({ 'reason-code': 'later-version', 'reason': 'x' }), 'x');
    assert.deepEqual(limitsOf('1', '4', 4), { min: 1, max: 4 });
    for (const [min, max] of [['0', '4'], ['3', '2'], ['1', '5'], ['1.5', '2'], ['', '4']] as const) {
        assert.equal(limitsOf(min, max, 4), undefined, `${min} ${max}`);
    }
});

test('calls of the same thing do not overlap, and the last request counts', async () => {
    const ends: (() => void)[] = [];
    const ask = oneAtATime(() => new Promise(resolve => { ends.push(resolve); }));
    const all = Promise.all([ask(), ask(), ask()]);
    assert.equal(ends.length, 1);
    ends[0]?.();
    await Promise.resolve();
    assert.equal(ends.length, 2);
    ends[1]?.();
    await all;
    assert.equal(ends.length, 2);
    void ask();
    assert.equal(ends.length, 3);
});
