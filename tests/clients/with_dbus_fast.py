"""A client with dbus-fast. The arguments are the name of a machine and a number."""

import asyncio
import sys

from dbus_fast import BusType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusError

NAME, COUNT = sys.argv[1], int(sys.argv[2])


async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()

    async def interface(path, of):
        introspection = await bus.introspect("org.vcpud1", path)
        return bus.get_proxy_object("org.vcpud1", path, introspection).get_interface(of)

    manager = await interface("/org/vcpud1", "org.vcpud1.Manager")
    print("features", "until" in await manager.get_features())
    path = await manager.call_get_machine(NAME)
    machine = await interface(path, "org.vcpud1.Machine")
    added, last = [], asyncio.Event()

    def on_added(vcpu, _alias, _details):
        added.append(vcpu)
        if vcpu == COUNT - 1:
            last.set()

    machine.on_vcpu_added(on_added)
    result = await machine.call_set_vcpus(COUNT, {})
    print("added", result[0])
    await asyncio.wait_for(last.wait(), 30)
    print("signals", added)
    print("vcpus", await machine.get_vcpus())
    try:
        await machine.call_set_vcpus(99, {})
    except DBusError as error:
        print("error", error.type)


asyncio.run(main())
