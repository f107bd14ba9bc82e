# The commands for packagers and contributors. `tests/setup` installs the requirements on Debian and Ubuntu.
PREFIX  ?= /usr
DESTDIR ?=
CARGO   ?= cargo
# The directory of the programs to install.
BUILD   ?= $(or $(CARGO_TARGET_DIR),target)/release
install_to = install -D -m 644 $(1) $(DESTDIR)$(2)

all: $(BUILD)/org.vcpud1.5
	$(CARGO) build --release --locked

# Generates the manual page of the D-Bus interface.
$(BUILD)/org.vcpud1.5: dbus/manual dbus/org.vcpud1.xml
	@mkdir -p $(@D)
	dbus/manual >$@

# Adds and removes vCPUs of a real guest.
demo:
	tests/demo

# Runs all tests.
check:
	tests/run

# Starts a virtualization host in a VM, and prints the commands to use and to stop it.
lab:
	tests/lab/start

# Runs the tests that need this host.
check-lab:
	tests/lab/check

# Runs each fuzz target for a moment. `fuzz/run` has options.
fuzz:
	fuzz/run

# Looks for known vulnerabilities in the dependencies. Needs GitHub, which has the database.
audit:
	tests/dependencies --advisories

# Runs the benchmarks; benches/README.md explains their figures.
bench:
	$(CARGO) bench --locked --bench floor --bench many --bench storm

# Runs the benchmark that needs a virtualization host, in the lab.
bench-lab:
	tests/lab/bench

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --test lab --bench hotplug -- -D warnings

# Does not build the programs, so that it can run as root after `make` as a user.
install: $(BUILD)/org.vcpud1.5
	install -D -m 755 $(BUILD)/vcpud $(DESTDIR)$(PREFIX)/sbin/vcpud
	install -D -m 755 $(BUILD)/vcpud-exporter $(DESTDIR)$(PREFIX)/sbin/vcpud-exporter
	install -D -m 755 $(BUILD)/vcpuctl $(DESTDIR)$(PREFIX)/bin/vcpuctl
	$(call install_to,dbus/org.vcpud1.conf,$(PREFIX)/share/dbus-1/system.d/org.vcpud1.conf)
	$(call install_to,dbus/org.vcpud1.service,$(PREFIX)/share/dbus-1/system-services/org.vcpud1.service)
	$(call install_to,dbus/org.vcpud1.xml,$(PREFIX)/share/dbus-1/interfaces/org.vcpud1.xml)
	$(call install_to,polkit/org.vcpud1.policy,$(PREFIX)/share/polkit-1/actions/org.vcpud1.policy)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/vcpud/examples polkit/examples/*.rules
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/vcpud CHANGELOG.md doc/*.md
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/vcpud/monitoring doc/monitoring/*
	$(call install_to,systemd/vcpud.service,$(PREFIX)/lib/systemd/system/vcpud.service)
	$(call install_to,systemd/vcpud.path,$(PREFIX)/lib/systemd/system/vcpud.path)
	$(call install_to,systemd/vcpud-exporter.service,$(PREFIX)/lib/systemd/system/vcpud-exporter.service)
	$(call install_to,systemd/vcpud-exporter.socket,$(PREFIX)/lib/systemd/system/vcpud-exporter.socket)
	$(call install_to,systemd/vcpud-exporter.sysusers,$(PREFIX)/lib/sysusers.d/vcpud-exporter.conf)
	$(call install_to,systemd/vcpud.tmpfiles,$(PREFIX)/lib/tmpfiles.d/vcpud.conf)
	$(call install_to,systemd/vcpud.catalog,$(PREFIX)/lib/systemd/catalog/vcpud.catalog)
	$(call install_to,man/vcpud.8,$(PREFIX)/share/man/man8/vcpud.8)
	$(call install_to,man/vcpud-exporter.8,$(PREFIX)/share/man/man8/vcpud-exporter.8)
	$(call install_to,man/vcpuctl.1,$(PREFIX)/share/man/man1/vcpuctl.1)
	$(call install_to,man/vcpud.toml.5,$(PREFIX)/share/man/man5/vcpud.toml.5)
	$(call install_to,$(BUILD)/org.vcpud1.5,$(PREFIX)/share/man/man5/org.vcpud1.5)
	$(BUILD)/vcpuctl completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vcpuctl
	$(BUILD)/vcpuctl completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_vcpuctl
	$(BUILD)/vcpuctl completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vcpuctl.fish

# A failed command leaves no target.
.DELETE_ON_ERROR:
.PHONY: all demo check lab check-lab fuzz audit bench bench-lab lint install
