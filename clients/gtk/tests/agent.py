"""An authentication agent of polkit for one process. It never asks a user: it cancels when it gets SIGUSR1. The dialog of
a desktop does the same if the user closes it. It must not know passwords."""

import os
import signal
import sys

from gi.repository import Gio, GLib

PATH = "/org/vcpud1/test/agent"
POLKIT = "org.freedesktop.PolicyKit1"
INTERFACE = """<node><interface name="org.freedesktop.PolicyKit1.AuthenticationAgent">
<method name="BeginAuthentication">
<arg name="action_id" type="s" direction="in"/><arg name="message" type="s" direction="in"/>
<arg name="icon_name" type="s" direction="in"/><arg name="details" type="a{ss}" direction="in"/>
<arg name="cookie" type="s" direction="in"/><arg name="identities" type="a(sa{sv})" direction="in"/>
</method>
<method name="CancelAuthentication"><arg name="cookie" type="s" direction="in"/></method>
</interface></node>"""

open_questions = []


def called(_bus, _sender, _path, _interface, method, arguments, invocation):
    """Keeps a question, and prints the text of its dialog."""
    if method == "BeginAuthentication":
        action, message, *_ = arguments.unpack()
        print(f"asked {action}: {message}", flush=True)
        open_questions.append(invocation)
    else:
        print("cancelled by polkit", flush=True)
        invocation.return_value(None)


def cancel():
    """Cancels all questions."""
    while open_questions:
        open_questions.pop().return_dbus_error(f"{POLKIT}.Error.Cancelled", "the user has closed the dialog")
    return True


def main(pid):
    """Serves until the bus ends."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        start = int(file.read().rsplit(")", 1)[1].split()[19])
    uid = os.stat(f"/proc/{pid}").st_uid
    process = {"pid": GLib.Variant("u", pid), "start-time": GLib.Variant("t", start), "uid": GLib.Variant("i", uid)}
    flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
    bus = Gio.DBusConnection.new_for_address_sync(os.environ["DBUS_SYSTEM_BUS_ADDRESS"], flags, None, None)
    bus.register_object(PATH, Gio.DBusNodeInfo.new_for_xml(INTERFACE).interfaces[0], called, None, None)
    register = GLib.Variant("((sa{sv})ss)", (("unix-process", process), "C.UTF-8", PATH))
    authority = (POLKIT, f"/{POLKIT.replace('.', '/')}/Authority", f"{POLKIT}.Authority")
    bus.call_sync(*authority, "RegisterAuthenticationAgent", register, None, Gio.DBusCallFlags.NONE, -1, None)
    print("registered", flush=True)
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR1, cancel)
    GLib.MainLoop().run()


main(int(sys.argv[1]))
