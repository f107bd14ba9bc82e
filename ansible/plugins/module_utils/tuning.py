# SPDX-FileCopyrightText: The vcpud developers
# SPDX-License-Identifier: LGPL-2.1-or-later

"""Compares the desired values of a task with those of a machine. Pure: runs nothing.

The values of a task and of a machine have the same form, the placement: a dictionary of dictionaries. Each
dictionary has values by vCPU, or by ALL; that of bandwidth has the quota and the period.
"""

from __future__ import annotations

import re

from ansible_collections.vcpud.vcpud.plugins.module_utils.vcpuctl import INVALID_VCPU, Failure

ALL = 'all'
DEFAULT = 'default'
UNLIMITED = 'unlimited'
POLICIES = ('other', 'batch', 'idle', 'fifo', 'rr')
REAL_TIME = ('fifo', 'rr')

# The units of humantime that a bandwidth can have, in microseconds.
UNITS = {
    'us': 1, 'usec': 1, 'ms': 1000, 'msec': 1000,
    's': 1000000, 'sec': 1000000, 'second': 1000000, 'seconds': 1000000,
}


def desired(parameters, max_vcpus):
    """Returns the placement that a task desires. Raises Failure if a value is not valid."""
    placement = {}
    for kind, canonical in (('pins', _cpus), ('schedulers', _scheduler), ('cache', _schemata)):
        if parameters[kind]:
            placement[kind] = _by_vcpu(kind, parameters[kind], canonical, max_vcpus)
    cache = placement.get('cache', {})
    if ALL in cache:
        # vcpud has no default of the machine for the cache, but a value of each vCPU.
        every = cache.pop(ALL)
        placement['cache'] = {vcpu: cache.get(vcpu, every) for vcpu in range(max_vcpus)}
    if parameters['bandwidth']:
        placement['bandwidth'] = _bandwidth(parameters['bandwidth'])
    return placement


def present(tuning, wanted):
    """Returns the placement of a machine for the keys of wanted, from the output of the command tuning."""
    placement = {
        'pins': {row['vcpu']: _cpus(row['cpus']) for row in tuning['pins']},
        'schedulers': {row['vcpu']: _named(row['policy'], row['priority']) for row in tuning['schedulers']},
        'cache': {row['vcpu']: _schemata(row['schemata']) for row in tuning['cache']},
        'bandwidth': {
            'quota_usec': tuning['bandwidth-quota-usec'],
            'period_usec': tuning['bandwidth-period-usec'],
        },
    }
    if 'affinity' in tuning:
        placement['pins'][ALL] = _cpus(tuning['affinity'])
    if 'scheduler' in tuning:
        placement['schedulers'][ALL] = _named(tuning['scheduler'], tuning['priority'])
    return {
        kind: {key: placement[kind].get(key, DEFAULT) for key in values}
        for kind, values in wanted.items()
    }


def commands(name, now, wanted):
    """Returns the commands of vcpuctl that change the placement now to wanted: the name, the arguments, the options."""
    result = []
    for kind, command in (('pins', 'pin'), ('schedulers', 'scheduler'), ('cache', 'cache')):
        values = wanted.get(kind, {})
        changed = {key: value for key, value in values.items() if now[kind][key] != value}
        for vcpus, value in grouped(changed).items():
            arguments = value.split(':') if kind == 'schedulers' else [value]
            result.append((command, [name, vcpus, *arguments], []))
    limit = wanted.get('bandwidth')
    if limit and limit != now['bandwidth']:
        if limit['quota_usec'] == -1:
            result.append(('bandwidth', [name, UNLIMITED], []))
        else:
            period = ['--period', f"{limit['period_usec']}us"]
            result.append(('bandwidth', [name, f"{limit['quota_usec']}us"], period))
    return result


def described(placement):
    """Returns a placement for people: vCPUs with the same value are one list."""
    return {
        kind: dict(values) if kind == 'bandwidth' else grouped(values)
        for kind, values in placement.items()
    }


def grouped(values):
    """Returns the values by lists of vCPUs, such as 2-3; all comes first."""
    vcpus = {}
    for vcpu, value in values.items():
        if vcpu != ALL:
            vcpus.setdefault(value, []).append(vcpu)
    result = {ALL: values[ALL]} if ALL in values else {}
    result.update((format_list(numbers), value) for value, numbers in vcpus.items())
    return result


def parse_list(text):
    """Returns the numbers of a list such as 2,4-7, or None if the text is not a list."""
    numbers = set()
    for part in str(text).split(','):
        match = re.fullmatch(r'\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*', part)
        if not match:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            return None
        numbers.update(range(first, last + 1))
    return numbers


def format_list(numbers):
    """Returns the list of numbers, such as 2,4-7."""
    runs = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)


def microseconds(text):
    """Returns a time such as 50ms, or a number of seconds, in microseconds. Returns None if the text is not a time."""
    match = re.fullmatch(r'([0-9]+(?:\.[0-9]+)?)', str(text))
    if match:
        return round(float(match[1]) * 1000000)
    match = re.fullmatch(r'([0-9]+) ?([a-z]+)', str(text))
    return int(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else None


def _by_vcpu(kind, values, canonical, max_vcpus):
    """Returns the values of a parameter by vCPU."""
    result = {}
    for key, text in values.items():
        value = canonical(text)
        if value is None:
            raise Failure(f'{kind}: "{text}" is not valid; {EXPECTED[kind]}')
        numbers = parse_list(key)
        if key == ALL:
            numbers = [ALL]
        if numbers is None:
            raise Failure(f'{kind}: "{key}" is not a list of vCPUs such as "2,4-7", and not "all"')
        for number in numbers:
            if number != ALL and number >= max_vcpus:
                text = f'{kind}: the machine has no vCPU {number}; its vCPUs are 0 to {max_vcpus - 1}'
                raise Failure(text, error=INVALID_VCPU)
            if result.setdefault(number, value) != value:
                raise Failure(f'{kind}: vCPU {number} has two values; name each vCPU once')
    return result


EXPECTED = {
    'pins': 'write a list of host CPUs such as "0-3,8", or "default"',
    'schedulers': 'write "other", "batch" or "idle", or "fifo" or "rr" with a priority of 1 to 99 such as "fifo:10", or "default"',
    'cache': 'write schemata in the syntax of resctrl such as "L3:0=f", or "default"',
}


def _cpus(text):
    if text == DEFAULT:
        return DEFAULT
    numbers = parse_list(text)
    return None if numbers is None else format_list(numbers)


def _scheduler(text):
    if text == DEFAULT:
        return DEFAULT
    policy, colon, priority = str(text).partition(':')
    if policy not in POLICIES or (colon and not priority.isdecimal()):
        return None
    priority = int(priority or 0)
    in_range = 1 <= priority <= 99 if policy in REAL_TIME else priority == 0
    return _named(policy, priority) if in_range else None


def _named(policy, priority):
    return f'{policy}:{priority}' if priority else policy


def _schemata(text):
    """Returns schemata in the form of vcpud: sorted, lower case, without leading zeros."""
    if text == DEFAULT:
        return DEFAULT
    shares = {}
    for line in str(text).split('\n'):
        resource, colon, domains = line.strip().partition(':')
        for domain in domains.split(';') if resource else []:
            match = re.fullmatch(r'\s*([0-9]+)\s*=\s*([0-9a-fA-F]+)\s*', domain)
            if not match:
                return None
            shares.setdefault(resource, {})[int(match[1])] = match[2].lower().lstrip('0') or '0'
    lines = (
        f'{resource}:' + ';'.join(f'{domain}={share}' for domain, share in sorted(domains.items()))
        for resource, domains in sorted(shares.items())
    )
    return '\n'.join(lines) or None


def _bandwidth(parameter):
    if parameter['quota'] == UNLIMITED:
        return {'quota_usec': -1}
    limit = {f'{key}_usec': microseconds(parameter[key]) for key in ('quota', 'period')}
    for key in ('quota', 'period'):
        if limit[f'{key}_usec'] is None:
            raise Failure(f'bandwidth: "{parameter[key]}" is not a time such as "50ms" for the {key}')
    return limit
