"""Tests of the window when something takes long, fails or changes at the same time. They run in the order of their
names."""

import time
import unittest

from forgery import Forger
from gi.repository import GLib
from window import BUTTON, ROW, SPIN, Atspi, Window, calls, wait, world


class TroubleTest(unittest.TestCase):
    """A new window and a new guest for each test: QEMU without KVM adds only some vCPUs in its life."""

    def setUp(self):
        world("renew_guest")
        self.window = Window()
        self.addCleanup(self.window.close)

    def open_late(self):
        """Starts a guest that does not bring new CPUs online by itself, adds vCPU 1, and opens the machine."""
        world("start_guest late 1,maxcpus=4 guest.no-online")
        self.addCleanup(world, "halt late && rm $stage/late.serial")
        world("target/debug/vcpuctl --quiet set late 2")
        self.window.open("late")
        self.window.see_text("vCPU 1, not started")

    def test_01_says_that_the_service_does_not_answer(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.set("Number of vCPUs", 3)
        window.see("Add vCPU 2")
        window.click("Number of vCPUs", SPIN)
        window.has_focus("Number of vCPUs", SPIN)
        self.addCleanup(world, "kill -CONT $pid_vcpud")
        world("kill -STOP $pid_vcpud")
        window.see("vcpud Does Not Answer")
        self.assertIsNone(window.usable("Apply", BUTTON))
        window.picture("no-answer")
        # The keys have no effect.
        window.key("ctrl+plus")
        window.key("ctrl+Return")
        world("kill -CONT $pid_vcpud")
        window.see("Add vCPU 2")
        window.see("2 of 8")
        window.has_focus("Number of vCPUs", SPIN)

    def test_02_loses_no_change_of_a_service_that_starts(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        for count in [3, 2, 4, 2]:
            world("halt vcpud")
            window.see("vcpud Is Not Running")
            self.assertIsNone(window.usable("Apply", BUTTON))
            # The window reads all machines while the number changes.
            world(f"start_vcpud && until_true target/debug/vcpuctl --quiet set --timeout 50s web {count}")
            window.see(f"{count} of 8")

    def test_03_does_not_disturb_the_user(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.click("Number of vCPUs", SPIN)
        window.has_focus("Number of vCPUs", SPIN)
        window.key("ctrl+a")
        window.key("BackSpace")
        wait(lambda: window.text("Number of vCPUs", SPIN) == "", "the empty text")
        world("has_vcpus 3 0-2")
        window.see("3 of 8")
        window.see_text("vCPU 2, started")
        self.assertEqual(window.text("Number of vCPUs", SPIN), "")
        # The plan follows the text.
        window.key("4")
        window.see("Add vCPU 3")
        window.click("Apply", BUTTON)
        window.see("web: Added vCPU 3")
        window.see("4 of 8")
        window.has_focus("Number of vCPUs", SPIN)

    def test_04_explains_a_conflict(self):
        window = self.window
        world("has_vcpus 3 0-2")
        window.open("web")
        window.see_text("vCPU 2, started")
        window.set("Number of vCPUs", 4)
        window.see("Add vCPU 3")
        world("record_calls SetVcpus")
        self.addCleanup(world, "halt monitor")
        # The service answers neither request until both have arrived, that of the other program first.
        self.addCleanup(world, "kill -CONT $pid_vcpud")
        world("kill -STOP $pid_vcpud")
        world("run other call SetVcpus 'ua{sv}' 5 0")
        wait(lambda: calls() == 1, "the call of the other program")
        window.press("Apply")
        wait(lambda: calls() == 2, "the call of the application")
        world("kill -CONT $pid_vcpud")
        window.see("web: In conflict with another change")
        window.press("Details")
        window.see_text("Another program has changed the machine")
        window.picture("conflict")
        window.press_in_dialog("Close")
        window.see_text("vCPU 4, started")
        # A new request ends the old message.
        window.press("Apply")
        window.see("web: Removed vCPU 4")
        window.gone("web: In conflict with another change")

    def test_05_is_dark(self):
        self.window.close()
        window = Window(ADW_DEBUG_COLOR_SCHEME="prefer-dark")
        self.addCleanup(window.close)
        world("tell_qemu web stop")
        self.addCleanup(world, "tell_qemu web cont")
        window.open("power")
        window.see_text("vCPU 3, not started")
        window.set("Number of vCPUs", 8)
        window.see("The guest may not notice")
        window.picture("dark-warning")
        window.open("web")
        window.see_text("host CPUs used")
        window.set("Number of vCPUs", 1)
        window.press("Apply")
        window.see_text("vCPU 1, removing")
        window.see("web: The guest has not released the vCPUs yet")
        window.picture("dark")
        window.key("ctrl+p")
        window.type("vCPUs, such as 0-3", "9")
        window.picture("dark-pins")

    def test_06_waits_for_a_password(self):
        window = self.window
        world(f"start_agent {window.process.pid}")
        self.addCleanup(world, "halt agent")
        window.open("bare")
        window.see_text("vCPU 0, started")
        window.set("Number of vCPUs", 3)
        window.press("Apply")
        world("until_true grep 'asked org.vcpud1.set-vcpus' $stage/agent.log")
        window.see("Applying the change")
        # A call of D-Bus usually has a limit of 25 s.
        end = time.monotonic() + 27
        wait(lambda: time.monotonic() > end, "27 seconds")
        self.assertIsNone(window.shown("bare: The request was not authorized"))
        window.see("Applying the change")
        window.picture("password")
        # The message names its machine, and not the one on the page.
        window.open("web")
        window.see_text("vCPU 1, started")
        world("kill -USR1 $pid_agent")
        window.see("bare: The request was not authorized")
        window.press("Details")
        window.see_text("the authentication was dismissed")
        window.press_in_dialog("Close")
        window.see("1 of 4")

    def test_07_shows_many_vcpus(self):
        window = self.window
        window.open("web")
        window.move_focus("web", ROW)
        world("start_firmware many 40,maxcpus=240")
        self.addCleanup(world, "halt many")
        window.see("many", ROW)
        window.has_focus("web", ROW)
        window.open("many")
        window.see_text("vCPU 239, free")
        # Its use follows.
        window.see_text("vCPU 0, started, ")
        grid = window.see("240 vCPUs")
        # The other groups are not far below.
        self.assertLess(window.size(grid).height, 1200)
        window.picture("many")

    def test_08_changes_no_pin_without_the_user(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        self.addCleanup(world, "renew_guest")
        # The vCPUs without a pin have these host CPUs too.
        world("call PinVcpus 'ausa{sv}' 1 0 0-1 0")
        window.see_text("vCPU 0 on 0-1")
        window.press_text("vCPU 0, started")
        window.see("vCPU 0 of web")
        window.see_text("Host thread")
        window.press_in_dialog("Apply")
        window.open("bare")
        window.open("web")
        window.see_text("vCPU 0 on 0-1")
        world("call GetTuning | grep 'a(us) 1 0 .0-1' >&2")

    def test_09_closes_the_dialog_of_a_machine_that_has_ended(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.key("ctrl+p")
        window.see("Pin vCPUs of web")
        self.addCleanup(world, "renew_guest")
        world("halt web")
        window.no_dialog()
        self.assertIsNone(window.shown("Pin vCPUs of web"))

    def test_10_applies_no_number_that_is_not_possible(self):
        window = self.window
        window.open("web")
        window.see("Not running")
        window.key("ctrl+s")
        # The bus starts vcpud-autoscale, which knows whether the machine has settings.
        window.see("Automatic Scaling of web")
        self.addCleanup(world, "end_autoscale")
        window.move_focus("Maximum number of vCPUs", SPIN)
        for key in ("ctrl+a", "9", "9"):
            window.key(key)
        applied = lambda: window.shown("Apply", BUTTON, window.toplevels()[1])
        is_usable = lambda: applied().get_state_set().contains(Atspi.StateType.SENSITIVE)
        wait(lambda: not is_usable(), "the insensitive button")
        window.picture("impossible-limit")
        for key in ("ctrl+a", "6"):
            window.key(key)
        wait(is_usable, "the button")

    def test_11_searches_machines(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.key("ctrl+f")
        window.has_focus("Search machines", Atspi.Role.ENTRY)
        window.key("O")
        window.key("w")
        window.gone("bare")
        window.see("power", ROW)
        window.picture("search")
        # The search does not change what the page shows.
        window.see_text("vCPU 1, started")
        window.key("Return")
        window.see_text("in steps of 4")
        window.key("ctrl+f")
        window.key("x")
        window.see("No machine has this name")
        window.key("Escape")
        window.see("bare", ROW)
        # Typing in the list starts the search.
        window.move_focus("web", ROW)
        window.key("b")
        window.key("a")
        window.see("bare", ROW)
        window.gone("power")

    def test_12_chooses_no_number_while_qemu_does_not_answer(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        # Without a choice, and with one.
        for chosen in (2, 3):
            self.addCleanup(world, "kill -CONT $pid_web")
            world("halt vcpud && kill -STOP $pid_web && start_vcpud")
            window.see_text("vcpud has no connection to QEMU")
            window.see("0 of 1")
            self.assertIsNone(window.shown("Planning"))
            window.picture(f"no-qemu-{chosen}")
            world("kill -CONT $pid_web")
            window.see("2 of 8")
            window.see_text("1 to 8")
            wait(lambda value=chosen: window.value("Number of vCPUs") == value, "the number")
            if chosen == 2:
                self.assertIsNone(window.usable("Apply", BUTTON))
                self.assertIsNone(next((text for text in window.texts() if text.startswith("Remove")), None))
                window.set("Number of vCPUs", 3)
            window.see("Add vCPU 2")
        window.key("ctrl+0")
        window.gone("Add vCPU 2")

    def test_13_ignores_signals_of_other_users(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        forger = Forger(window.process.pid)
        self.addCleanup(forger.close)
        web, interface = "/org/vcpud1/machine/web", "org.vcpud1.Machine"
        properties = {"Name": GLib.Variant("s", "forged"), "State": GLib.Variant("s", "running")}
        manager = ("/org/vcpud1", "org.freedesktop.DBus.ObjectManager")
        added = ("/org/vcpud1/machine/forged", {interface: properties})
        forger.emit(*manager, "InterfacesAdded", "(oa{sa{sv}})", *added)
        changed = (interface, {"MaxVcpus": GLib.Variant("u", 99)}, [])
        forger.emit(web, "org.freedesktop.DBus.Properties", "PropertiesChanged", "(sa{sv}as)", *changed)
        forger.emit(web, interface, "VcpuRemovalFailed", "(ussa{sv})", 1, "vcpu1", "forged", {})
        forger.emit(*manager, "InterfacesRemoved", "(oas)", "/org/vcpud1/machine/bare", [interface])
        ended = ("org.vcpud1", ":1.1", "")
        forger.emit("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", "(sss)", *ended)
        # The signals of the service arrive after the forged ones.
        world("has_vcpus 3 0-2")
        window.see("3 of 8")
        window.see("bare", ROW)
        self.assertEqual([text for text in window.texts() if "forged" in text or "stays" in text], [])

    def test_14_gives_nothing_of_a_machine_to_another_one(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.set("Number of vCPUs", 5)
        window.see("Add vCPUs 2–4")
        window.key("ctrl+p")
        window.see("Pin vCPUs of web")
        # The service reports the new machine of this name without the end of the old one.
        world("halt vcpud")
        window.see("vcpud Is Not Running")
        world("halt web && rm $stage/web.serial && start_guest web 1,maxcpus=6")
        self.addCleanup(world, "renew_guest")
        world("start_vcpud")
        window.no_dialog()
        window.see("1 of 6")
        window.see_text("vCPU 5, free")
        self.assertEqual(window.value("Number of vCPUs"), 1)

    def test_15_shows_no_old_plan(self):
        window = self.window
        self.open_late()
        window.set("Number of vCPUs", 3)
        window.see("The guest may not notice")
        world('tell_guest late "online 1"')
        window.see_text("vCPU 1, started")
        window.gone("The guest may not notice")
        window.see("Add vCPU 2")

    def test_16_reads_a_machine_that_comes_again(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        for machine in ("bare", "power"):
            world(f"halt {machine}")
        self.addCleanup(world, "start_firmware bare 1,maxcpus=4 && start_power power 4,threads=4,maxcpus=16")
        window.gone("power")
        window.set("Number of vCPUs", 5)
        window.see("Add vCPUs 2–4")
        window.key("ctrl+p")
        window.see("Pin vCPUs of web")
        world("halt web")
        window.no_dialog()
        window.see("No Machines")
        world("renew_guest")
        window.see_text("vCPU 1, started")
        window.see("Not running")
        self.assertEqual(window.value("Number of vCPUs"), 2)

    def test_17_sees_a_vcpu_that_starts_late(self):
        window = self.window
        self.open_late()
        # vcpud looks without a call for a minute only.
        world("record_calls ListVcpus")
        self.addCleanup(world, "halt monitor")
        wait(lambda: calls() >= 2, "calls")
        world('tell_guest late "online 1"')
        window.see_text("vCPU 1, started")
