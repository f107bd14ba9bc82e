# SPDX-FileCopyrightText: The vcpud developers
# SPDX-License-Identifier: LGPL-2.1-or-later

"""Runs vcpuctl, and reads its JSON. Does not know what Ansible does with the results."""

from __future__ import annotations

import json
import re

NO_SUCH_MACHINE = 'org.vcpud1.Error.NoSuchMachine'
INVALID_VCPU = 'org.vcpud1.Error.InvalidVcpu'

# The members of a failure of vcpuctl that list vCPUs.
DETAILS = ('added', 'removed', 'pending', 'refused', 'nearest')

# The beginning of a warning of vcpuctl on standard error.
WARNING = 'vcpuctl: warning: '


class Failure(Exception):
    """A command of vcpuctl failed.

    error is the name of the D-Bus error, or None. rc is the exit status of vcpuctl, or None if vcpuctl did not run.
    """

    def __init__(self, message, error=None, rc=None, details=None):
        super().__init__(message)
        self.message = message
        self.error = error
        self.rc = rc
        self.details = details or {}

    def as_dict(self):
        """Returns the values that a failed task reports."""
        return dict(self.details, msg=self.message, error=self.error, rc=self.rc)


class Vcpuctl:
    """The command vcpuctl, which run runs.

    run is a function that takes the arguments, and returns the exit status, standard output and standard error.
    """

    def __init__(self, program, run):
        self._command = [program, '--json', '--no-ask-password']
        self._run = run
        # The warnings of all commands.
        self.warnings = []

    def __call__(self, command, *arguments, options=()):
        """Runs a command, and returns its JSON document. Raises Failure."""
        # A name or a value never counts as an option.
        rc, stdout, stderr = self._run(self._command + [command, *options, '--', *arguments])
        warnings = (line[len(WARNING):] for line in stderr.splitlines() if line.startswith(WARNING))
        self.warnings += (warning for warning in warnings if warning not in self.warnings)
        return document(rc, stdout, stderr)


def document(rc, stdout, stderr):
    """Returns the JSON document of a command that has ended. Raises Failure."""
    try:
        result = json.loads(stdout)
    except ValueError:
        text = stderr.strip() or stdout.strip() or 'no output'
        raise Failure(f'vcpuctl did not print JSON: {text}', rc=rc)
    if rc == 0:
        return result
    details = snake_case({key: result[key] for key in DETAILS if key in result})
    raise Failure(result['message'], error=result['error'], rc=rc, details=details)


def snake_case(properties):
    """Returns properties of vcpuctl with names such as max_vcpus, also in the dictionaries within them."""
    if isinstance(properties, list):
        return [snake_case(item) for item in properties]
    if isinstance(properties, dict):
        return {_snake_name(key): snake_case(value) for key, value in properties.items()}
    return properties


def _snake_name(name):
    name = name.replace('USec', 'Usec').replace('-', '_')
    return re.sub('(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()
