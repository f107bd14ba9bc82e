"""A client with dbus-python. The arguments are the name of a machine and a number."""

import sys

import dbus
import dbus.mainloop.glib
from gi.repository import GLib

name, count = sys.argv[1], int(sys.argv[2])
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SystemBus()
root = bus.get_object("org.vcpud1", "/org/vcpud1")
objects = dbus.Interface(root, "org.freedesktop.DBus.ObjectManager").GetManagedObjects()
print("features", "until" in objects["/org/vcpud1"]["org.vcpud1.Manager"]["Features"])
path = dbus.Interface(root, "org.vcpud1.Manager").GetMachine(name)
assert objects[path]["org.vcpud1.Machine"]["Name"] == name
machine = dbus.Interface(bus.get_object("org.vcpud1", path), "org.vcpud1.Machine")

loop = GLib.MainLoop()
added = []


def on_added(vcpu, _alias, _details):
    added.append(int(vcpu))
    if vcpu == count - 1:
        loop.quit()


machine.connect_to_signal("VcpuAdded", on_added)
# Python's integers are D-Bus's int32.
result = machine.SetVcpus(count, {"timeout-usec": 5000000}, signature="ua{sv}")
print("added", [int(vcpu) for vcpu in result[0]])
GLib.timeout_add_seconds(30, loop.quit)
loop.run()
print("signals", added)
properties = dbus.Interface(machine.proxy_object, "org.freedesktop.DBus.Properties")
print("vcpus", int(properties.Get("org.vcpud1.Machine", "Vcpus")))
try:
    machine.SetVcpus(99, {}, signature="ua{sv}")
except dbus.DBusException as error:
    print("error", error.get_dbus_name())
