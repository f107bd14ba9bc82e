#!/usr/bin/python
# SPDX-FileCopyrightText: The vcpud developers
# SPDX-License-Identifier: LGPL-2.1-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine
short_description: Set the number and the placement of the vCPUs of a running QEMU virtual machine
version_added: 0.1.0
author: The vcpud developers (@vcpud)
description:
  - Sets the number of virtual CPUs (vCPUs) of a machine, and where and how they run on the host.
  - A machine is a running QEMU process that the service C(vcpud) of the managed host knows.
  - The module changes only values that differ. Values that the task does not name stay.
  - The placement is set before the number of vCPUs, so that new vCPUs start with it.
  - If the number of vCPUs is not possible, the task fails and changes nothing.
requirements:
  - vcpuctl (on the managed host)
options:
  name:
    description: The name of the machine.
    type: str
    required: true
  vcpus:
    description:
      - The desired number of vCPUs.
      - C(vcpud) adds the free vCPUs with the lowest numbers, or removes the removable vCPUs with the highest numbers.
    type: int
  until:
    description:
      - The end of an addition.
      - With V(started), the task waits until the guest has run code on all present vCPUs, and fails if the guest does
        not do so within O(timeout). The vCPUs stay.
      - With V(present), the task ends when QEMU has added the vCPUs.
      - If QEMU runs all vCPUs in one thread, O(guest_online=true) or V(present) is required.
    type: str
    choices: [present, started]
    default: started
  timeout:
    description:
      - The maximum time to wait for QEMU and the guest, in seconds or in a form such as V(500ms) or V(1min 30s).
      - By default, the task waits for the C(removal-timeout) of the machine, which is 5 seconds if not configured.
        With O(until=present), an addition waits until QEMU has replied.
      - After the time limit, a removal stays pending, and the task fails. The same task waits again.
    type: str
  guest_online:
    description:
      - Use the guest agent to bring vCPUs online in the guest after adding them, and to take vCPUs offline before
        removing them.
    type: bool
    default: false
  pins:
    description:
      - The host CPUs that vCPUs can run on.
      - The keys are lists of vCPUs such as V(2) or V(2,4-7), present or free. The key V(all) sets the default for vCPUs
        without a pin of their own.
      - The values are lists of host CPUs such as V(0-3,8). The value V(default) removes the pin.
    type: dict
  bandwidth:
    description:
      - The limit of the CPU time of each vCPU, including vCPUs that are added later.
      - The machine needs control groups of its own.
    type: dict
    suboptions:
      quota:
        description:
          - The maximum CPU time of each vCPU in a period, in seconds or in a form such as V(20ms).
          - The value V(unlimited) removes the limit.
        type: str
        required: true
      period:
        description: The length of a period, from V(1ms) to V(1s).
        type: str
        default: 100ms
  schedulers:
    description:
      - The scheduling policies of vCPUs.
      - The keys are lists of vCPUs as in O(pins). The key V(all) sets the default for vCPUs without a policy of
        their own.
      - The values are V(other), V(batch), V(idle), or V(fifo) or V(rr) with a priority of 1 to 99 such as V(fifo:10).
        The value V(default) removes the policy.
    type: dict
  cache:
    description:
      - The host cache that vCPUs can use.
      - The keys are lists of vCPUs as in O(pins). The key V(all) means all vCPUs of the machine that no other key names.
      - The values have the syntax of resctrl, such as V(L3:0=f), with one line for each resource. The value V(default)
        is the default of the host.
      - resctrl must be mounted on the managed host.
    type: dict
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - The service plans the change of the number of vCPUs, so the task reports the same vCPUs, or the same error.
      - Check mode does not predict replies of QEMU, the guest or the kernel, such as a refused removal or host CPUs that
        are offline.
      - Check mode warns if O(bandwidth) differs and the machine has no control groups.
  diff_mode:
    support: full
  platform:
    platforms: posix
    details: The module needs Linux with C(vcpud) and its command C(vcpuctl).
notes:
  - Only root, and users that a rule of polkit authorizes, can change machines. Use C(become) for other users.
seealso:
  - module: vcpud.vcpud.machine_info
  - plugin: vcpud.vcpud.machines
    plugin_type: inventory
"""

EXAMPLES = r"""
- name: Set the number of vCPUs, and wait until the guest has started them
  vcpud.vcpud.machine:
    name: web
    vcpus: 8
    timeout: 30s

- name: Remove vCPUs, and wait at most one minute for the guest
  vcpud.vcpud.machine:
    name: web
    vcpus: 2
    timeout: 1min

- name: Run the vCPUs 2 and 3 on the host CPUs 4 and 5, and all others on 0 to 3
  vcpud.vcpud.machine:
    name: web
    pins:
      all: 0-3
      2-3: 4-5

- name: Limit each vCPU to one fifth of a host CPU
  vcpud.vcpud.machine:
    name: web
    bandwidth:
      quota: 20ms

- name: Run vCPU 0 with a real-time policy
  vcpud.vcpud.machine:
    name: web
    schedulers:
      0: fifo:10

- name: Accept that a removal is pending
  vcpud.vcpud.machine:
    name: web
    vcpus: 2
  register: result
  failed_when:
    - result is failed
    - result.error != "org.vcpud1.Error.RemovalPending"
"""

RETURN = r"""
added:
  description: The vCPUs that the task added, or would add in check mode. Also returned by a failed request.
  returned: always, if the service reports it
  type: list
  elements: int
  sample: [2, 3]
removed:
  description: The vCPUs that the task removed, or would remove in check mode. Also returned by a failed request.
  returned: always, if the service reports it
  type: list
  elements: int
  sample: []
pending:
  description: The vCPUs whose removal is pending. Not empty only if the task fails.
  returned: always, if the service reports it
  type: list
  elements: int
  sample: []
vcpus:
  description: The number of present vCPUs after the task, or the predicted number in check mode.
  returned: success
  type: int
  sample: 4
applied:
  description: The settings of the placement that the task applied before it failed, as commands of vcpuctl without the
    name of the machine.
  returned: failure
  type: list
  elements: str
  sample: ["pin 2-3 4-5"]
refused:
  description: The vCPUs that the guest or QEMU refused to add or remove, each with the reason.
  returned: failure, if the service reports it
  type: list
  elements: dict
  sample:
    - vcpu: 3
      reason_code: busy
      reason: the guest is busy with the CPU
nearest:
  description: The numbers of vCPUs nearest to the request that are possible now.
  returned: failure, if the number of vCPUs is not possible
  type: list
  elements: int
  sample: [16]
error:
  description: The name of the D-Bus error, as in org.vcpud1(5). Null if the service did not reply.
  returned: failure
  type: str
  sample: org.vcpud1.Error.OutOfRange
rc:
  description: The exit status of vcpuctl, as in vcpuctl(1). Null if vcpuctl did not run.
  returned: failure
  type: int
  sample: 7
warnings:
  description: Warnings of vcpuctl, such as vCPUs that the guest has not started.
  returned: if there are any
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vcpud.vcpud.plugins.module_utils import tuning
from ansible_collections.vcpud.vcpud.plugins.module_utils.vcpuctl import Failure, Vcpuctl

ARGUMENTS = dict(
    name=dict(type='str', required=True),
    vcpus=dict(type='int'),
    until=dict(type='str', choices=['present', 'started'], default='started'),
    timeout=dict(type='str'),
    guest_online=dict(type='bool', default=False),
    pins=dict(type='dict'),
    bandwidth=dict(type='dict', options=dict(
        quota=dict(type='str', required=True),
        period=dict(type='str', default='100ms'),
    )),
    schedulers=dict(type='dict'),
    cache=dict(type='dict'),
)


class Machine:
    """One machine, and the values that the task desires for it."""

    def __init__(self, vcpuctl, parameters):
        self.vcpuctl = vcpuctl
        self.parameters = parameters
        self.name = parameters['name']
        # The settings of the placement that the task has applied.
        self.applied = []
        self.warnings = []

    def plan(self):
        """Compares the machine with the desired values. Changes nothing."""
        count = self.parameters['vcpus']
        self.planned = {'added': [], 'removed': []}
        if count is not None:
            self.planned = self.vcpuctl('set', self.name, str(count), options=['--dry-run'])
        status = self.vcpuctl('status', self.name)
        self.wanted = tuning.desired(self.parameters, status['MaxVcpus'])
        self.before = self.state(status['Vcpus'])
        self.commands = tuning.commands(self.name, self.before, self.wanted)
        self.present = status['Vcpus']
        self.placement_errors = status['PlacementErrors']

    def state(self, vcpus):
        """Returns the present values of the parameters of the task."""
        state = {}
        if self.wanted:
            state = tuning.present(self.vcpuctl('tuning', self.name), self.wanted)
        if self.parameters['vcpus'] is not None:
            state['vcpus'] = vcpus
        return state

    def predict(self):
        """Returns the result in check mode."""
        after = dict(self.wanted)
        vcpus = self.present + len(self.planned['added']) - len(self.planned['removed'])
        if self.parameters['vcpus'] is not None:
            after['vcpus'] = vcpus
        if any(command == 'bandwidth' for command, arguments, options in self.commands):
            errors = [error for error in self.placement_errors if error.startswith('no control groups')]
            self.warnings += [f'The bandwidth cannot be set now: {error}' for error in errors]
        result = {key: self.planned[key] for key in ('added', 'removed')}
        return self.result(dict(result, pending=[], vcpus=vcpus), after)

    def change(self):
        """Makes the changes, and returns the result."""
        for command, arguments, options in self.commands:
            self.vcpuctl(command, *arguments, options=options)
            # Without the name of the machine.
            self.applied.append(' '.join([command, *arguments[1:]]))
        outcome = {'added': [], 'removed': [], 'pending': []}
        if self.needs_request():
            outcome = self.vcpuctl('set', self.name, str(self.parameters['vcpus']), options=self.options())
        vcpus = self.vcpuctl('status', self.name)['Vcpus']
        return self.result(dict(outcome, vcpus=vcpus), self.state(vcpus))

    def needs_request(self):
        """Returns whether vCPUs are to be added, to be removed or to be awaited."""
        if self.parameters['vcpus'] is None:
            return False
        if self.planned['added'] or self.planned['removed']:
            return True
        awaited = ['started'] if self.parameters['until'] == 'started' else []
        awaited += ['online'] if self.parameters['guest_online'] else []
        vcpus = self.vcpuctl('vcpus', self.name)
        # A key is absent if the service does not know the value.
        return any(vcpu['present'] and vcpu.get(key) is False for vcpu in vcpus for key in awaited)

    def options(self):
        """Returns the options of the command set."""
        options = ['--until', self.parameters['until']]
        if self.parameters['timeout'] is not None:
            options += ['--timeout', self.parameters['timeout']]
        if self.parameters['guest_online']:
            options.append('--guest-online')
        return options

    def result(self, outcome, after):
        changed = bool(self.commands or outcome['added'] or outcome['removed'])
        diff = {'before': described(self.before), 'after': described(after)}
        return dict(outcome, changed=changed, diff=diff)


def described(state):
    placement = {kind: values for kind, values in state.items() if kind != 'vcpus'}
    result = tuning.described(placement)
    if 'vcpus' in state:
        result['vcpus'] = state['vcpus']
    return result


def main():
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_one_of=[['vcpus', 'pins', 'bandwidth', 'schedulers', 'cache']],
        supports_check_mode=True,
    )
    vcpuctl = Vcpuctl(module.get_bin_path('vcpuctl', required=True), module.run_command)
    machine = Machine(vcpuctl, module.params)
    try:
        machine.plan()
        result = machine.predict() if module.check_mode else machine.change()
    except Failure as failure:
        values = failure.as_dict()
        changed = bool(machine.applied or values.get('added') or values.get('removed'))
        module.fail_json(changed=changed, applied=machine.applied, **values)
    for warning in vcpuctl.warnings + machine.warnings:
        module.warn(warning)
    module.exit_json(**result)


if __name__ == '__main__':
    main()
