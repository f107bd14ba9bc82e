"""Tests of the window with a real bus, polkitd, vcpud and QEMU. They run in the order of their names."""

import time
import unittest

from window import ROW, SPIN, Window, calls, wait, world


class WindowTest(unittest.TestCase):
    """A new window for each test."""

    def setUp(self):
        if "follows" not in self.id() and "denies" not in self.id():
            world("has_vcpus 2 0-1")
        self.window = Window()
        self.addCleanup(self.window.close)

    def test_01_shows_the_machines(self):
        window = self.window
        for machine in ["bare", "power", "web"]:
            window.see(machine, ROW)
        window.see("2 of 8")
        window.open("web")
        window.see("vCPU 7, free")
        window.see_text("2 started, 6 free")
        window.see_text("host CPUs used")
        window.picture("machines")

    def test_02_plans_and_adds_vcpus(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.set("Number of vCPUs", 4)
        window.see("Add vCPUs 2, 3")
        window.picture("plan")
        window.press("Apply")
        window.see("web: Added vCPUs 2, 3")
        window.see_text("vCPU 3, started")
        window.see("4 of 8")
        window.picture("added")

    def test_03_shows_the_refusal_of_the_guest(self):
        window = self.window
        world("has_vcpus 4 0-3")
        world('tell_guest web "refuse 3"')
        window.open("web")
        window.set("Number of vCPUs", 3)
        window.see("Remove vCPU 3")
        window.press("Apply")
        window.see_text("vCPU 3 of web stays")
        window.picture("refused")
        window.press("Details")
        window.see_text("The service reports")
        window.picture("refusal-details")
        window.press_in_dialog("Close")
        world('tell_guest web "unrefuse 3"')
        window.press("Apply")
        window.see("web: Removed vCPU 3")
        window.see("vCPU 3, free")

    def test_04_says_that_the_user_is_not_authorized(self):
        window = self.window
        window.open("bare")
        window.see_text("vCPU 0, started")
        window.set("Number of vCPUs", 2)
        window.press("Apply")
        window.see("bare: The request was not authorized")
        window.picture("denied")
        window.press("Details")
        window.see_text("polkit")

    def test_05_changes_whole_slots(self):
        window = self.window
        window.open("power")
        window.see_text("in steps of 4")
        window.see_text("vCPU 15, free")
        window.set("Number of vCPUs", 7)
        window.see("The machine cannot have this number of vCPUs")
        window.see_text("the nearest numbers are 4 and 8")
        window.picture("impossible")
        window.set("Number of vCPUs", 4)
        window.key("ctrl+plus")
        window.see("Add vCPUs 4–7")
        window.see("The guest may not notice")
        window.picture("warning")
        window.press("Apply")
        window.see("power: Added vCPUs 4–7")
        window.see_text("vCPU 7, not started")
        window.set("Number of vCPUs", 4)
        window.press("Apply")
        window.see("power: Removed vCPUs 4–7")

    def test_06_shows_pending_removals(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        world("tell_qemu web stop")
        self.addCleanup(world, "tell_qemu web cont")
        window.see("Paused")
        window.set("Number of vCPUs", 1)
        window.press("Apply")
        window.see("web: The guest has not released the vCPUs yet")
        window.see_text("vCPU 1, removing")
        window.picture("pending")
        world("tell_qemu web cont")
        window.see("vCPU 1, free")
        window.see("1 of 8")

    def test_07_pins_vcpus(self):
        window = self.window
        window.open("web")
        window.see_text("vCPU 1, started")
        window.key("ctrl+p")
        window.type("vCPUs, such as 0-3", "1")
        window.type("Host CPUs, such as 0-3,8", "0")
        window.picture("pins")
        window.press_in_dialog("Apply")
        window.see("web: Pin changed")
        window.see("vCPU 1 on 0")
        window.press_text("vCPU 0, started")
        window.see_text("Host thread")
        window.type("Pin to host CPUs, such as 0-3,8", "4000")
        window.picture("vcpu")
        window.press_in_dialog("Apply")
        window.see("web: The host does not have these CPUs")

    def test_08_scales_automatically(self):
        window = self.window
        window.open("web")
        window.see("Not running")
        window.press("Turn On…")
        window.set("Maximum number of vCPUs", 6)
        window.picture("scaling")
        window.press_in_dialog("Apply")
        window.see_text("On, 1 to 6")
        window.picture("scaled")
        world('kill -STOP "$(<"$stage/autoscale.pid")"')
        window.open("power")
        window.open("web")
        window.see("vcpud-autoscale does not answer")
        world('kill -CONT "$(<"$stage/autoscale.pid")"')
        window.see_text("On, 1 to 6")
        world("target/debug/vcpuctl --quiet autoscale web --update --step-up 2")
        window.press("Change…")
        window.set("Maximum number of vCPUs", 5)
        window.press_in_dialog("Apply")
        window.see_text("On, 1 to 5")
        # The setting that the dialog does not show stays.
        world('grep -q "step-up = 2" "$stage/autoscale-state/web.toml"')
        world("end_autoscale")
        window.see("Stopped, 1 to 5")
        window.picture("scaling-stopped")
        world("start_autoscale")
        window.see_text("On, 1 to 5")
        window.press("Turn Off")
        window.see("Off")
        # polkit has no agent that could ask for the password. Without the flag for it, the title would be another one.
        window.open("bare")
        window.press("Turn On…")
        window.press_in_dialog("Apply")
        window.see("bare: The request was not authorized")

    def test_09_has_keys(self):
        window = self.window
        window.see_text("vCPU 3, free")
        window.key("ctrl+Next")
        window.key("ctrl+Next")
        window.see_text("vCPU 7, free")
        window.key("ctrl+plus")
        window.see("Add vCPU 2")
        window.key("ctrl+0")
        window.gone("Add vCPU 2")
        window.key("ctrl+question")
        window.see("Choose more vCPUs")
        window.picture("shortcuts")

    def test_10_fits_in_a_narrow_window(self):
        window = self.window
        window.open("web")
        window.see("vCPU 7, free")
        wide = window.width("web")
        window.resize(400, 720)
        # The list takes the place of both.
        wait(lambda: window.width("web") > wide + 50, "the narrow window")
        window.picture("narrow-list")
        window.click("web", ROW)
        window.see("Back to the machines")
        window.picture("narrow-page")
        # A key changes nothing that is not shown.
        window.set("Number of vCPUs", 1)
        window.see_text("Remove vCPU")
        window.key("alt+Left")
        wait(lambda: window.width("web") > wide + 50, "the list")
        window.key("ctrl+Return")
        window.key("ctrl+plus")
        window.click("web", ROW)
        window.see("Back to the machines")
        self.assertEqual(window.value("Number of vCPUs"), 1)
        self.assertIsNone(window.shown("Applying the change"))
        window.key("ctrl+0")
        window.key("alt+Left")

    def test_11_samples_only_while_it_is_visible(self):
        window = self.window
        window.see("web", ROW)
        world("record_calls GetStatistics")
        self.addCleanup(world, "halt monitor")
        wait(lambda: calls() >= 2, "samples")
        window.minimize()
        before, end = calls(), time.monotonic() + 4
        wait(lambda: time.monotonic() > end, "4 seconds")
        self.assertLessEqual(calls(), before + 1)
        before = calls()
        window.focus()
        wait(lambda: calls() >= before + 2, "samples")

    def test_12_survives_the_end_of_the_service(self):
        window = self.window
        window.open("web")
        window.see("vCPU 7, free")
        world("halt vcpud")
        window.see("vcpud Is Not Running")
        window.picture("no-service")
        # A key selects no other machine.
        window.key("ctrl+Prior")
        world("start_vcpud")
        window.see_text("2 started, 6 free")

    def test_13_survives_the_end_of_the_bus(self):
        window = self.window
        window.open("web")
        window.see("vCPU 7, free")
        world("halt bus")
        window.see("No Connection to the System Bus")
        window.picture("no-bus")
        world("restart_bus")
        # The window connects again by itself too.
        wait(lambda: window.shown("vCPU 7, free") or window.press_usable("Try Again"), "the button")
        window.see("vCPU 7, free")

    def test_14_limits_the_cpu_time(self):
        window = self.window
        window.see("web", ROW)
        world("start_scripted_service")
        window.see("vCPU 1, free")
        window.see("Each vCPU has at most 12.3 % of a host CPU")
        # The field has whole percents. Without a change of the user, the limit stays.
        window.key("ctrl+l")
        window.see("Limit of CPU Time of scripted")
        window.press_in_dialog("Apply")
        window.key("ctrl+l")
        window.move_focus("Percent of a host CPU", SPIN)
        window.key("ctrl+a")
        window.key("5")
        window.key("0")
        window.picture("limit")
        # The spin button keeps the focus, and has not taken the text.
        window.press_in_dialog("Apply")
        window.see("scripted: Limit of CPU time changed")
        window.see("Each vCPU has at most 50 % of a host CPU")
        window.key("ctrl+l")
        window.press_switch("Limit the CPU time")
        window.press_in_dialog("Apply")
        window.see("No limit")
        world("[[ $(<$stage/scripted.log) == $'SetBandwidth 100000 50000\\nSetBandwidth 100000 -1' ]]")
        world("halt scripted")
        world("start_vcpud")
        window.see("web", ROW)

    def test_15_follows_machines(self):
        window = self.window
        window.see("web", ROW)
        for machine in ["web", "bare", "power"]:
            world(f"halt {machine}")
        window.see("No Machines")
        window.picture("no-machines")
        world("start_firmware new 1,maxcpus=2")
        window.see("new", ROW)

    def test_16_says_that_the_bus_denies_access(self):
        window = self.window
        world("deny_nobody")
        window.see("Access Denied")
        window.picture("access-denied")
