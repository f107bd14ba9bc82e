#!/usr/bin/python
# SPDX-FileCopyrightText: The vcpud developers
# SPDX-License-Identifier: LGPL-2.1-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_info
short_description: Return the status and the vCPUs of running QEMU virtual machines
version_added: 0.1.0
author: The vcpud developers (@vcpud)
description:
  - Returns the machines that the service C(vcpud) of the managed host knows.
  - All users can run this module.
requirements:
  - vcpuctl (on the managed host)
options:
  name:
    description:
      - The name of the machine. The task fails if it does not exist.
      - By default, the module returns all machines.
    type: str
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.facts
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  facts:
    support: none
  action:
    support: none
  async:
    support: full
  bypass_host_loop:
    support: none
  platform:
    platforms: posix
    details: The module needs Linux with C(vcpud) and its command C(vcpuctl).
seealso:
  - module: vcpud.vcpud.machine
"""

EXAMPLES = r"""
- name: Read the status of all machines
  vcpud.vcpud.machine_info:
  register: host

- name: Print the number of vCPUs of each machine
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.vcpus }} of {{ item.max_vcpus }}"
  loop: "{{ host.machines }}"
  loop_control:
    label: "{{ item.name }}"

- name: Read the status of one machine
  vcpud.vcpud.machine_info:
    name: web
"""

RETURN = r"""
machines:
  description: The machines, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the machine.
      type: str
      sample: web
    state:
      description: The state of QEMU, such as V(running) or V(paused), or V(disconnected).
      type: str
      sample: running
    vcpus:
      description: The number of present vCPUs.
      type: int
      sample: 4
    max_vcpus:
      description: The maximum number of vCPUs.
      type: int
      sample: 16
    started_vcpus:
      description: The number of vCPUs that the guest has started.
      type: int
      sample: 4
    pending_removals:
      description: The vCPUs whose removal is pending.
      type: list
      elements: int
      sample: []
    leader:
      description: The PID of QEMU.
      type: int
      sample: 21457
    vcpu_list:
      description:
        - The vCPUs, present and free, sorted by number. Each has V(id), V(present), V(pending) and V(removable), and if
          they are known V(started), V(online), V(thread_id), V(affinity), V(scheduler) and others.
      type: list
      elements: dict
      sample:
        - id: 0
          present: true
          pending: false
          removable: false
          started: true
          affinity: 0-3
    tuning:
      description:
        - The desired values of the placement, with V(affinity), V(pins), V(bandwidth_quota_usec),
          V(bandwidth_period_usec), V(scheduler), V(priority), V(schedulers), V(memory_nodes) and V(cache).
      type: dict
      sample:
        pins:
          - vcpu: 2
            cpus: 4-5
        bandwidth_quota_usec: -1
        bandwidth_period_usec: 100000
        schedulers: []
        cache: []
  sample: []
error:
  description: The name of the D-Bus error, as in org.vcpud1(5). Null if the service did not reply.
  returned: failure
  type: str
  sample: org.vcpud1.Error.NoSuchMachine
rc:
  description: The exit status of vcpuctl, as in vcpuctl(1).
  returned: failure
  type: int
  sample: 6
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vcpud.vcpud.plugins.module_utils.vcpuctl import (
    NO_SUCH_MACHINE,
    Failure,
    Vcpuctl,
    snake_case,
)


def one(vcpuctl, status):
    """Returns a machine with its vCPUs."""
    name = status['Name']
    details = {'vcpu_list': vcpuctl('vcpus', name), 'tuning': vcpuctl('tuning', name)}
    return snake_case(dict(status, **details))


def every(vcpuctl):
    """Returns all machines. A machine that ends in the meantime is not one of them."""
    machines = []
    for status in vcpuctl('list'):
        try:
            machines.append(one(vcpuctl, status))
        except Failure as failure:
            if failure.error != NO_SUCH_MACHINE:
                raise
    return machines


def main():
    module = AnsibleModule(argument_spec=dict(name=dict(type='str')), supports_check_mode=True)
    vcpuctl = Vcpuctl(module.get_bin_path('vcpuctl', required=True), module.run_command)
    name = module.params['name']
    try:
        machines = every(vcpuctl) if name is None else [one(vcpuctl, vcpuctl('status', name))]
    except Failure as failure:
        module.fail_json(**failure.as_dict())
    module.exit_json(machines=machines)


if __name__ == '__main__':
    main()
