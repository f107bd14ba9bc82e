"""The window of the application, as assistive technologies see it. It must not know what a test expects."""

import os
import subprocess
import time

import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi, GLib  # noqa: E402

LIMIT = float(os.environ.get("VCPUD_GTK_LIMIT", 60))  # seconds
TITLE = "Virtual CPUs"


def world(command):
    """Runs a shell command in the world, as root."""
    with open("ask", "w", encoding="utf-8") as ask:
        ask.write(command + "\n")
    with open("answer", encoding="utf-8") as answer:
        if answer.readline().strip() != "yes":
            raise AssertionError(f"the world cannot: {command}")


def wait(condition, text):
    """Waits until a function returns something true, and returns that. Checks it after each event of the window."""
    loop = GLib.MainLoop()
    deadline = time.monotonic() + LIMIT
    result = None

    def check(*_):
        nonlocal result
        try:
            result = condition()
        except GLib.Error:
            # A widget has gone in the meantime.
            result = None
        if result or time.monotonic() > deadline:
            loop.quit()
        return True

    # Some changes have no event.
    timer = GLib.timeout_add(200, check)
    GLib.idle_add(lambda: check() and False)
    loop.run()
    GLib.source_remove(timer)
    if not result:
        raise AssertionError(f"timed out waiting for {text}")
    return result


class Window:
    """A running application."""

    def __init__(self, **environment):
        self.log = open("application.log", "a", encoding="utf-8")
        environment = {**os.environ, **environment}
        self.process = subprocess.Popen(["./vcpud-gtk"], stdout=self.log, stderr=self.log, env=environment)
        self.root = wait(self.find_application, "the application")
        self.number = wait(self.find_window, "the window")
        self.focus()

    def find_application(self):
        desktop = Atspi.get_desktop(0)
        desktop.set_cache_mask(Atspi.Cache.NONE)
        for index in range(desktop.get_child_count()):
            child = desktop.get_child_at_index(index)
            if not child or child.get_process_id() != self.process.pid:
                continue
            child.set_cache_mask(Atspi.Cache.NONE)
            if child.get_child_count():
                return child
        return None

    def close(self):
        """Ends the application, and returns its exit status."""
        self.process.terminate()
        self.process.wait(LIMIT)
        self.log.close()

    def shown(self, name, role=None, parent=None):
        """Returns the shown object with a name, or None."""
        # GTK 4.8 repeats the label of a button.
        names = (name, f"{name} {name}")
        for node in self.nodes(parent or self.root):
            same = node.get_name().replace("_", "") in names and role in (None, node.get_role())
            if same and self.is_shown(node):
                return node
        return None

    def nodes(self, node):
        """Returns all objects below a node."""
        for index in range(node.get_child_count()):
            child = node.get_child_at_index(index)
            if child is None:
                continue
            yield child
            yield from self.nodes(child)

    @staticmethod
    def is_shown(node):
        """Returns whether a node has a size. GTK 4.8 has no other sign of it."""
        if "Component" not in node.get_interfaces():
            return False
        extents = node.get_extents(Atspi.CoordType.WINDOW)
        return extents.width > 0 and extents.height > 0

    def texts(self):
        """Returns the names of all shown objects."""
        nodes = (node for node in self.nodes(self.root) if node.get_name())
        return [node.get_name() for node in nodes if self.is_shown(node)]

    def see(self, name, role=None):
        """Waits for a shown object with a name."""
        try:
            return wait(lambda: self.shown(name, role), f'"{name}"')
        except AssertionError as error:
            raise AssertionError(f"{error}; the window has {self.texts()}") from None

    def see_text(self, part):
        """Waits for a text that contains a part."""
        try:
            return wait(lambda: next((text for text in self.texts() if part in text), None), f'"{part}"')
        except AssertionError as error:
            raise AssertionError(f"{error}; the window has {self.texts()}") from None

    def gone(self, name):
        """Waits until no object with a name is shown."""
        wait(lambda: not self.shown(name), f'the end of "{name}"')

    def usable(self, name, role=None):
        """Returns the object with a name if the user can use it, or None."""
        node = self.shown(name, role)
        return node if node and node.get_state_set().contains(Atspi.StateType.SENSITIVE) else None

    def press_usable(self, name):
        """Presses a button if the user can use it. Returns whether it was pressed."""
        button = self.usable(name, BUTTON)
        return button is not None and button.do_action(0)

    def press(self, name):
        """Waits for a button that can be pressed, and presses it."""
        wait(lambda: self.press_usable(name), f'the button "{name}"')

    def is_focused(self, name, role):
        """Returns whether an object, or a part of it, has the focus."""
        focused = lambda node: node.get_state_set().contains(Atspi.StateType.FOCUSED)
        node = self.shown(name, role)
        return node and (focused(node) or any(focused(part) for part in self.nodes(node)))

    def has_focus(self, name, role):
        """Waits until an object, or a part of it, has the focus."""
        wait(lambda: self.is_focused(name, role), f'the focus of "{name}"')

    def move_focus(self, name, role):
        """Presses Tab until an object has the focus."""
        self.see(name, role)
        wait(lambda: self.is_focused(name, role) or self.key("Tab"), f'the focus of "{name}"')

    def text(self, name, role):
        """Returns the text that the user sees in an object."""
        for node in [self.see(name, role), *self.nodes(self.see(name, role))]:
            if "Text" in node.get_interfaces():
                return node.get_text(0, -1)
        raise AssertionError(f'"{name}" has no text')

    def press_in_dialog(self, name):
        """Presses a button of the dialog, and waits for the end of the dialog."""

        def button():
            for top in self.toplevels()[1:]:
                node = self.shown(name, BUTTON, top)
                if node and node.get_state_set().contains(Atspi.StateType.SENSITIVE):
                    return node
            return None

        wait(button, f'the button "{name}" of a dialog').do_action(0)
        self.no_dialog()

    def no_dialog(self):
        """Waits until the X server shows no window but the main one. GTK 4.8 can end with a segmentation fault if an
        assistive technology reads the list of its windows while one of them closes."""
        visible = ["xdotool", "search", "--onlyvisible", "--pid", str(self.process.pid)]
        shown = lambda: subprocess.run(visible, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
        wait(lambda: shown() == [self.number], "the end of the dialog")

    def press_text(self, part):
        """Presses a button whose name contains a part."""
        named = lambda: next((node for node in self.nodes(self.root) if part in node.get_name()), None)
        wait(named, f'"{part}"').do_action(0)

    def press_switch(self, name):
        """Presses a switch."""

        def switch():
            named = (node for node in self.nodes(self.root) if node.get_name() == name)
            return next((node for node in named if node.get_role() in SWITCHES), None)

        wait(switch, f'the switch "{name}"').do_action(0)

    def toplevels(self):
        """Returns the windows, the main one first."""
        count = self.root.get_child_count()
        tops = [self.root.get_child_at_index(index) for index in range(count)]
        return sorted((top for top in tops if top), key=lambda top: top.get_name() != TITLE)

    def set(self, name, value):
        """Sets a spin button."""
        wait(lambda: self.shown(name, Atspi.Role.SPIN_BUTTON), f'the spin button "{name}"').set_current_value(value)

    def value(self, name):
        """Returns the value of a spin button."""
        return self.see(name, Atspi.Role.SPIN_BUTTON).get_current_value()

    def type(self, name, text):
        """Replaces the text of an entry."""
        entry = wait(lambda: self.shown(name, Atspi.Role.TEXT), f'the entry "{name}"')
        entry.set_text_contents(text)

    def key(self, keys):
        """Presses keys, such as ctrl+l."""
        subprocess.run(["xdotool", "key", keys], check=True)

    def open(self, machine):
        """Selects a machine, and waits for its page."""
        self.see(machine, ROW)
        rows = self.see("Machines", Atspi.Role.LIST)
        for index in range(rows.get_child_count()):
            if rows.get_child_at_index(index).get_name() == machine:
                rows.select_child(index)
                return
        raise AssertionError(f"no machine {machine} in {self.texts()}")

    def width(self, machine):
        """Returns the width of the row of a machine."""
        return self.size(self.see(machine, ROW)).width

    @staticmethod
    def size(node):
        """Returns the place and the size of an object in its window."""
        return node.get_extents(Atspi.CoordType.WINDOW)

    def click(self, name, role):
        """Clicks an object with the mouse, which also moves the focus. GTK 4.8 has no other way for tests."""
        place = wait(lambda: self.usable(name, role), f'"{name}"').get_extents(Atspi.CoordType.WINDOW)
        # The right part of a spin button has other buttons.
        inside = [str(place.x + min(place.width // 2, 20)), str(place.y + place.height // 2)]
        subprocess.run(["xdotool", "mousemove", "--window", self.number, *inside, "click", "1"], check=True)

    def find_window(self):
        """Returns the number of the main window in the X server, or None."""
        search = ["xdotool", "search", "--onlyvisible", "--pid", str(self.process.pid), "--name", f"^{TITLE}$"]
        found = subprocess.run(search, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
        return found[0] if found else None

    def focus(self):
        """Gives the main window the focus of the keyboard."""
        subprocess.run(["xdotool", "windowmap", self.number, "windowactivate", "--sync", self.number], check=True)

    def minimize(self):
        """Minimizes the main window."""
        subprocess.run(["xdotool", "windowminimize", self.number], check=True)
        wait(lambda: not self.find_window(), "the end of the window")

    def resize(self, width, height):
        """Sets the size of the main window."""
        subprocess.run(["xdotool", "windowsize", self.number, str(width), str(height)], check=True)

    def picture(self, name):
        """Takes a screenshot, without a tooltip."""
        subprocess.run(["xdotool", "mousemove", "1279", "899"], check=True)
        subprocess.run(["import", "-window", "root", name + ".png"], check=True)


SPIN = Atspi.Role.SPIN_BUTTON
BUTTON = Atspi.Role.PUSH_BUTTON
SWITCHES = (Atspi.Role.TOGGLE_BUTTON, Atspi.Role.CHECK_BOX)
ROW = Atspi.Role.LIST_ITEM


def calls():
    """Returns the number of calls since `record_calls`."""
    world("count_calls")
    with open("calls", encoding="utf-8") as file:
        return int(file.read())
