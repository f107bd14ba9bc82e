"""A service with the interface of vcpud and one machine that has control groups, which vcpud can give it only with systemd.
It must not be used for what the real service can show."""

import os
import sys

from gi.repository import Gio, GLib

ROOT = "/org/vcpud1"
PATH = ROOT + "/machine/scripted"
MACHINE = "org.vcpud1.Machine"
MANAGER = """<node><interface name="org.freedesktop.DBus.ObjectManager">
<method name="GetManagedObjects"><arg type="a{oa{sa{sv}}}" direction="out"/></method></interface></node>"""

properties = {
    "Name": GLib.Variant("s", "scripted"),
    "State": GLib.Variant("s", "running"),
    "HotplugMethod": GLib.Variant("s", "device-add"),
    "Placement": GLib.Variant("s", "scope"),
    "Unit": GLib.Variant("s", "vcpud-scripted.scope"),
    "BandwidthPeriodUSec": GLib.Variant("t", 100000),
    "BandwidthQuotaUSec": GLib.Variant("x", 12300),
    "Vcpus": GLib.Variant("u", 1),
    "StartedVcpus": GLib.Variant("u", 1),
    "MaxVcpus": GLib.Variant("u", 2),
    "VcpusPerSlot": GLib.Variant("u", 1),
}


def vcpu(number, present):
    """Returns a row of ListVcpus."""
    return {"id": GLib.Variant("u", number), "present": GLib.Variant("b", present), "started": GLib.Variant("b", True)}


def called(bus, _sender, _path, _interface, method, arguments, invocation):
    """Answers a call."""
    if method == "GetManagedObjects":
        reply = GLib.Variant("(a{oa{sa{sv}}})", ({PATH: {MACHINE: properties}},))
    elif method == "ListVcpus":
        reply = GLib.Variant("(aa{sv})", ([vcpu(0, True), vcpu(1, False)],))
    elif method == "SetBandwidth":
        period, quota, _ = arguments.unpack()
        print(f"SetBandwidth {period} {quota}", flush=True)
        changed = {"BandwidthPeriodUSec": GLib.Variant("t", period), "BandwidthQuotaUSec": GLib.Variant("x", quota)}
        properties.update(changed)
        body = GLib.Variant("(sa{sv}as)", (MACHINE, changed, []))
        bus.emit_signal(None, PATH, "org.freedesktop.DBus.Properties", "PropertiesChanged", body)
        reply = None
    else:
        invocation.return_dbus_error("org.vcpud1.Error.NotSupported", "the scripted service cannot do this")
        return
    invocation.return_value(reply)


def main(xml):
    """Serves until the bus ends."""
    address = os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
    flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
    bus = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
    with open(xml, encoding="utf-8") as file:
        machine = Gio.DBusNodeInfo.new_for_xml(file.read()).lookup_interface(MACHINE)
    manager = Gio.DBusNodeInfo.new_for_xml(MANAGER).interfaces[0]
    bus.register_object(ROOT, manager, called, None, None)
    bus.register_object(PATH, machine, called, lambda *names: properties[names[-1]], None)
    Gio.bus_own_name_on_connection(bus, "org.vcpud1", Gio.BusNameOwnerFlags.NONE, None, None)
    GLib.MainLoop().run()


main(sys.argv[1])
