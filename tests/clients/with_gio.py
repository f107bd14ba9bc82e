"""A client with Gio's object manager, as GNOME programs use it. The arguments are the name of a machine and a number."""

import sys

import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib

name, count = sys.argv[1], int(sys.argv[2])
objects = Gio.DBusObjectManagerClient.new_for_bus_sync(
    Gio.BusType.SYSTEM, Gio.DBusObjectManagerClientFlags.NONE, "org.vcpud1", "/org/vcpud1", None, None, None
)
manager = objects.get_interface("/org/vcpud1", "org.vcpud1.Manager")
print("features", "until" in manager.get_cached_property("Features").unpack())
paths = [item.get_object_path() for item in objects.get_objects()]
machines = [objects.get_interface(path, "org.vcpud1.Machine") for path in paths]
assert all(machine or path == "/org/vcpud1" for path, machine in zip(paths, machines))
machine = next(item for item in machines if item and item.get_cached_property("Name").unpack() == name)

loop = GLib.MainLoop()
added = []


def on_signal(_proxy, _sender, signal, arguments):
    if signal == "VcpuAdded":
        added.append(arguments.unpack()[0])


def is_done(*_):
    if machine.get_cached_property("Vcpus").unpack() == count:
        loop.quit()


machine.connect("g-signal", on_signal)
machine.connect("g-properties-changed", is_done)
arguments = GLib.Variant("(ua{sv})", (count, {}))
result = machine.call_sync("SetVcpus", arguments, Gio.DBusCallFlags.NONE, GLib.MAXINT32, None)
print("added", result.unpack()[0])
GLib.timeout_add_seconds(30, loop.quit)
if machine.get_cached_property("Vcpus").unpack() != count:
    loop.run()
print("signals", added)
print("vcpus", machine.get_cached_property("Vcpus").unpack())
try:
    arguments = GLib.Variant("(ua{sv})", (99, {}))
    machine.call_sync("SetVcpus", arguments, Gio.DBusCallFlags.NONE, GLib.MAXINT32, None)
except GLib.Error as error:
    print("error", Gio.DBusError.get_remote_error(error))
