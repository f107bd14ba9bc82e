# SPDX-FileCopyrightText: The vcpud developers
# SPDX-License-Identifier: LGPL-2.1-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: machines
short_description: List the running QEMU virtual machines of hosts with vcpud
version_added: 0.1.0
author: The vcpud developers (@vcpud)
description:
  - Makes an inventory of the machines that the service C(vcpud) knows, on this host or on other hosts.
  - Each machine is an inventory host. It is in a group for its state, such as C(vcpud_running) or C(vcpud_paused).
  - Each property of a machine is a host variable with the prefix C(vcpud_), such as C(vcpud_vcpus), C(vcpud_max_vcpus),
    C(vcpud_started_vcpus), C(vcpud_state), C(vcpud_uuid) and C(vcpud_leader), which is the PID of QEMU. org.vcpud1(5)
    describes the properties. C(vcpud_host) is the host of the machine, or an empty string for this host.
  - The plugin does not know the addresses of guests. Use O(compose) to set C(ansible_host).
  - The name of the inventory file must end with C(vcpud.yml) or C(vcpud.yaml).
requirements:
  - vcpuctl (on the controller)
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [vcpud.vcpud.machines]
  hosts:
    description:
      - The hosts whose machines are listed, as C(vcpuctl -H) takes them. C(vcpuctl) calls them over ssh(1), and they need
        C(systemd-stdio-bridge), which is a part of systemd.
      - By default, the machines of this host are listed.
    type: list
    elements: str
    default: []
  full_names:
    description:
      - Name the inventory hosts MACHINE.HOST instead of MACHINE.
      - This is required if two hosts have a machine of the same name. A user name in O(hosts) is not a part of the name.
    type: bool
    default: false
  executable:
    description: The command C(vcpuctl), or its path.
    type: str
    default: vcpuctl
extends_documentation_fragment:
  - ansible.builtin.constructed
seealso:
  - module: vcpud.vcpud.machine_info
"""

EXAMPLES = r"""
# machines.vcpud.yml: the machines of this host
plugin: vcpud.vcpud.machines
---
# The machines of two hosts, in groups by host and by number of vCPUs
plugin: vcpud.vcpud.machines
hosts: [root@host1, root@host2]
full_names: true
keyed_groups:
  - key: vcpud_host
    prefix: host
groups:
  large: vcpud_vcpus >= 16
compose:
  ansible_host: vcpud_name ~ '.example.org'
"""

import subprocess

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable

from ansible_collections.vcpud.vcpud.plugins.module_utils.vcpuctl import Failure, Vcpuctl, snake_case


def run(command):
    """Runs a command, and returns its exit status, standard output and standard error."""
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


class InventoryModule(BaseInventoryPlugin, Constructable):
    """The machines of hosts with vcpud."""

    NAME = 'vcpud.vcpud.machines'

    def verify_file(self, path):
        return super().verify_file(path) and path.endswith(('vcpud.yml', 'vcpud.yaml'))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        self._names = set()
        for host in self.get_option('hosts') or ['']:
            for machine in self._list(host):
                self._add(host, machine)

    def _list(self, host):
        """Returns the properties of the machines of a host."""
        options = ['--host', host] if host else []
        program = self.get_option('executable')
        try:
            return Vcpuctl(program, run)('list', options=options)
        except OSError as error:
            text = f'cannot run {program}: {error.strerror}; install vcpuctl on the controller, or set executable'
            raise AnsibleParserError(text) from error
        except Failure as failure:
            place = f'host "{host}"' if host else 'this host'
            raise AnsibleParserError(f'cannot list the machines of {place}: {failure}') from failure

    def _add(self, host, machine):
        """Adds a machine with its variables and groups."""
        name = machine['Name']
        if self.get_option('full_names') and host:
            name = f"{name}.{host.rpartition('@')[2]}"
        if name in self._names:
            raise AnsibleParserError(f'two machines have the name "{name}"; set full_names to true')
        self._names.add(name)
        self.inventory.add_host(name)
        variables = {f'vcpud_{key}': value for key, value in snake_case(machine).items()}
        variables['vcpud_host'] = host.rpartition('@')[2]
        for key, value in variables.items():
            self.inventory.set_variable(name, key, value)
        group = self.inventory.add_group(self._sanitize_group_name(f"vcpud_{machine['State']}"))
        self.inventory.add_child(group, name)
        strict = self.get_option('strict')
        self._set_composite_vars(self.get_option('compose'), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option('groups'), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option('keyed_groups'), variables, name, strict=strict)
