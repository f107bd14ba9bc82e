# What packagers and contributors call. `tests/setup` finds what is missing on Debian and Ubuntu.
PREFIX  ?= /usr
DESTDIR ?=
CARGO   ?= cargo
# What is installed: where cargo puts it.
BUILD   ?= $(or $(CARGO_TARGET_DIR),target)/release
install_to = install -D -m 644 $(1) $(DESTDIR)$(2)

all:
	$(CARGO) build --release --locked

# Shows the main job on a real guest.
demo:
	tests/demo

# Runs all tests.
check:
	tests/run

# A whole virtualization host to try things in; says how to look inside and how to stop it.
lab:
	tests/lab/start

# Runs the tests that need such a host.
check-lab:
	tests/lab/check

# Tries each fuzz target for a moment; `fuzz/run` says how to do more.
fuzz:
	fuzz/run

# Looks for known vulnerabilities in what vcpud is built of. Needs GitHub, where their database is.
audit:
	tests/dependencies --advisories

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --test lab -- -D warnings

# Does not build, so that it can run as root after `make` as a user.
install:
	install -D -m 755 $(BUILD)/vcpud $(DESTDIR)$(PREFIX)/sbin/vcpud
	install -D -m 755 $(BUILD)/vcpuctl $(DESTDIR)$(PREFIX)/bin/vcpuctl
	$(call install_to,dbus/org.vcpud1.conf,$(PREFIX)/share/dbus-1/system.d/org.vcpud1.conf)
	$(call install_to,dbus/org.vcpud1.service,$(PREFIX)/share/dbus-1/system-services/org.vcpud1.service)
	$(call install_to,dbus/org.vcpud1.xml,$(PREFIX)/share/dbus-1/interfaces/org.vcpud1.xml)
	$(call install_to,polkit/org.vcpud1.policy,$(PREFIX)/share/polkit-1/actions/org.vcpud1.policy)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/vcpud/examples polkit/examples/*.rules
	$(call install_to,systemd/vcpud.service,$(PREFIX)/lib/systemd/system/vcpud.service)
	$(call install_to,systemd/vcpud.path,$(PREFIX)/lib/systemd/system/vcpud.path)
	$(call install_to,systemd/vcpud.tmpfiles,$(PREFIX)/lib/tmpfiles.d/vcpud.conf)
	$(call install_to,systemd/vcpud.catalog,$(PREFIX)/lib/systemd/catalog/vcpud.catalog)
	$(call install_to,man/vcpud.8,$(PREFIX)/share/man/man8/vcpud.8)
	$(BUILD)/vcpuctl man | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man1/vcpuctl.1
	$(BUILD)/vcpuctl completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vcpuctl
	$(BUILD)/vcpuctl completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_vcpuctl
	$(BUILD)/vcpuctl completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vcpuctl.fish

.PHONY: all demo check lab check-lab fuzz audit lint install
