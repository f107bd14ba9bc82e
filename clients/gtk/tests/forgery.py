"""Signals of another process on the system bus, sent to the application as if they were those of a service. It must not
know what the window shows."""

import os

from gi.repository import Gio, GLib

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Forger:
    """A connection of the user that runs the tests."""

    def __init__(self, process):
        """Takes the process that gets the signals."""
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        address = os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
        self.bus = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
        names = self.call("ListNames", None)
        self.names = [name for name in names if name.startswith(":") and self.process(name) == process]
        assert self.names, f"process {process} is not on the bus: {names}"

    def call(self, method, arguments):
        """Calls a method of the bus, and returns the only value of the reply."""
        reply = self.bus.call_sync(*BUS, method, arguments, None, Gio.DBusCallFlags.NONE, -1, None)
        return reply.unpack()[0]

    def process(self, name):
        """Returns the process behind a name, or None if it has ended."""
        try:
            return self.call("GetConnectionUnixProcessID", GLib.Variant("(s)", (name,)))
        except GLib.Error:
            return None

    def emit(self, path, interface, member, kind, *body):
        """Sends a signal. Its place among the messages of the bus is before all later messages."""
        for name in self.names:
            self.bus.emit_signal(name, path, interface, member, GLib.Variant(kind, body))
        self.bus.flush_sync(None)
        self.call("GetId", None)

    def close(self):
        """Ends the connection."""
        self.bus.close_sync(None)
