"""Tests of the window with a real bus, polkitd, vcpud and QEMU."""

import unittest

from window import ROW, Window, world


class Machines(unittest.TestCase):
    """A window with three machines."""

    def setUp(self):
        self.window = Window()
        self.addCleanup(self.window.close)

    def test_01_shows_the_machines(self):
        window = self.window
        for machine in ["bare", "power", "web"]:
            window.see(machine, ROW)
        window.see("2 of 8")
        window.open("web")
        window.see("vCPU 1, started")
        window.see("vCPU 7, free")
        window.see_text("2 started, 6 free")
        window.see_text("host CPUs used")
        window.picture("machines")

    def test_02_plans_and_adds_vcpus(self):
        window = self.window
        window.open("web")
        window.see("vCPU 1, started")
        window.set("Number of vCPUs", 4)
        window.see("Add vCPUs 2, 3")
        window.picture("plan")
        window.press("Apply")
        window.see("Added vCPUs 2, 3")
        window.see_text("vCPU 3, started")
        window.picture("added")


if __name__ == "__main__":
    unittest.main(verbosity=2)
