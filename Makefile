# The commands for packagers and contributors. `tests/setup` installs the requirements on Debian and Ubuntu.
PREFIX  ?= /usr
DESTDIR ?=
CARGO   ?= cargo
# The directory of the programs to install.
BUILD   ?= $(or $(CARGO_TARGET_DIR),target)/release
# The vcpuctl that prints the completions. A cross build needs one for the host of the build.
VCPUCTL ?= $(BUILD)/vcpuctl
# The directory of policies: dbus-daemon and polkitd read no other one, except in /etc. The other files can be below
# /usr or /usr/local.
POLICIES ?= /usr/share
# zsh of Debian has another directory.
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/site-functions

SHELL       = /bin/bash
.SHELLFLAGS = -o pipefail -c

# --- The installed files, as SOURCE:PLACE ---

# `$(call into,DIRECTORY,SOURCE...)`
into     = $(foreach file,$(2),$(file):$(1)/$(notdir $(file)))
# The generated manual pages of the D-Bus interfaces.
manuals  = $(patsubst dbus/%.xml,$(BUILD)/%.5,$(wildcard dbus/*.xml))
docs     = $(PREFIX)/share/doc/vcpud
programs = \
	$(call into,$(PREFIX)/sbin,$(BUILD)/vcpud $(BUILD)/vcpud-autoscale $(BUILD)/vcpud-exporter) \
	$(call into,$(PREFIX)/bin,$(BUILD)/vcpuctl)
texts    = \
	$(call into,$(POLICIES)/dbus-1/system.d,$(wildcard dbus/*.conf)) \
	$(call into,$(POLICIES)/polkit-1/actions,$(wildcard polkit/*.policy)) \
	$(call into,$(POLICIES)/polkit-1/rules.d,$(wildcard polkit/*.rules)) \
	$(call into,$(PREFIX)/share/dbus-1/system-services,$(wildcard dbus/*.service)) \
	$(call into,$(PREFIX)/share/dbus-1/interfaces,$(wildcard dbus/*.xml)) \
	$(call into,$(PREFIX)/lib/systemd/system,$(wildcard systemd/*.service systemd/*.socket systemd/*.path)) \
	$(call into,$(PREFIX)/lib/systemd/catalog,systemd/vcpud.catalog) \
	systemd/vcpud-autoscale.sysusers:$(PREFIX)/lib/sysusers.d/vcpud-autoscale.conf \
	systemd/vcpud-exporter.sysusers:$(PREFIX)/lib/sysusers.d/vcpud-exporter.conf \
	systemd/vcpud.tmpfiles:$(PREFIX)/lib/tmpfiles.d/vcpud.conf \
	$(call into,$(PREFIX)/share/man/man1,$(wildcard man/*.1)) \
	$(call into,$(PREFIX)/share/man/man5,$(wildcard man/*.5) $(manuals)) \
	$(call into,$(PREFIX)/share/man/man8,$(wildcard man/*.8)) \
	$(call into,$(docs),COPYING README.md CHANGELOG.md $(wildcard doc/*.md) doc/session.svg) \
	$(call into,$(docs)/examples,doc/vcpud.toml $(wildcard polkit/examples/*.rules)) \
	$(call into,$(docs)/monitoring,$(wildcard doc/monitoring/*)) \
	$(call into,$(docs)/autoscaling,doc/autoscaling/course.svg) \
	$(call into,$(docs)/autoscaling/traces,$(wildcard doc/autoscaling/traces/*))
# The sources are the names of shells.
completions = \
	bash:$(PREFIX)/share/bash-completion/completions/vcpuctl \
	zsh:$(ZSH_COMPLETIONS)/_vcpuctl \
	fish:$(PREFIX)/share/fish/vendor_completions.d/vcpuctl.fish
# In the texts, the paths of vcpud follow PREFIX, and the links of README.md lead to its new directory.
follow = sed -e 's|/usr\(/[a-z0-9/.-]*vcpu\)|$(PREFIX)\1|g' -e 's|](doc/|](|g'

# The directory of the page for Cockpit.
cockpit = $(PREFIX)/share/cockpit/vcpud

source = $(firstword $(subst :, ,$(1)))
place  = $(DESTDIR)$(lastword $(subst :, ,$(1)))

# The application for GNOME, which `all` does not build.
gtk_id    = org.vcpud1.VirtualCpus
gtk_icons = scalable/apps/$(gtk_id).svg symbolic/apps/$(gtk_id)-symbolic.svg

# --- The targets ---

all: $(manuals)
	RUSTFLAGS='$(strip $(RUSTFLAGS) $(remap))' $(CARGO) build --release --locked

# The paths of the build are not in the programs, so that builds in different directories are identical.
crates = $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src
remap  = --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(crates)=crates \
	$(if $(CARGO_TARGET_DIR),--remap-path-prefix=$(abspath $(CARGO_TARGET_DIR))=./target)

# Builds the programs twice, the second time in another directory, and compares them. This takes minutes.
reproducible: all
	copy=$$(mktemp --directory) && trap 'rm -rf "$$copy"' EXIT && \
	git ls-files -z | xargs --null cp --parents --no-dereference --target-directory "$$copy" && \
	env --unset CARGO_TARGET_DIR $(MAKE) --directory "$$copy" all BUILD=target/release && \
	for program in vcpud vcpud-autoscale vcpud-exporter vcpuctl; do \
		cmp $(BUILD)/$$program "$$copy/target/release/$$program" || exit 1; \
		! grep --text --fixed-strings -e '$(CURDIR)/' -e "$$copy/" -e '$(crates)/' $(BUILD)/$$program || exit 1; \
	done

# Builds Debian packages in target/deb. debian/README.source has the options.
deb: export DEB_DIRECTORY = $(CURDIR)/target/deb
deb: export DEB_BUILD_PROFILES += $(if $(COCKPIT),pkg.vcpud.cockpit) $(if $(GTK),pkg.vcpud.gtk)
deb:
	rm -rf $(DEB_DIRECTORY)
	mkdir -p $(DEB_DIRECTORY)
	dpkg-buildpackage --build=binary --post-clean --unsigned-changes --unsigned-buildinfo \
		--buildinfo-option=-u$(DEB_DIRECTORY) --buildinfo-file=$(DEB_DIRECTORY)/vcpud.buildinfo \
		--changes-option=-u$(DEB_DIRECTORY) --changes-file=$(DEB_DIRECTORY)/vcpud.changes

# Generates the manual page of the D-Bus interface.
$(manuals): $(BUILD)/%.5: dbus/%.xml dbus/manual
	@mkdir -p $(@D)
	dbus/manual $* >$@.$$$$ && mv $@.$$$$ $@

# Builds the Ansible collection in target/ansible, with the Ansible that is installed.
ansible:
	ansible-galaxy collection build --force --output-path target/ansible ansible

# Builds the page for Cockpit in clients/cockpit/dist, with libraries from npm.
cockpit:
	clients/cockpit/check --build

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
	$(CARGO) clippy --locked --workspace --exclude vcpud-gtk --all-targets -- -D warnings
	$(CARGO) clippy --locked --test lab --bench hotplug -- -D warnings

# Does not build the programs, so that it can run as root after `make` as a user.
install: $(manuals)
	$(foreach file,$(programs),$(install_program))
	$(foreach file,$(texts),$(install_text))
	$(foreach file,$(completions),$(install_completion))

gtk:
	RUSTFLAGS='$(strip $(RUSTFLAGS) $(remap))' $(CARGO) build --release --locked --package vcpud-gtk

install-gtk:
	install -D -m 755 $(BUILD)/vcpud-gtk $(DESTDIR)$(PREFIX)/bin/vcpud-gtk
	install -D -m 644 clients/gtk/data/vcpud-gtk.1 $(DESTDIR)$(PREFIX)/share/man/man1/vcpud-gtk.1
	install -D -m 644 clients/gtk/data/$(gtk_id).desktop $(DESTDIR)$(PREFIX)/share/applications/$(gtk_id).desktop
	install -D -m 644 clients/gtk/data/$(gtk_id).metainfo.xml $(DESTDIR)$(PREFIX)/share/metainfo/$(gtk_id).metainfo.xml
	for icon in $(gtk_icons); do \
		install -D -m 644 clients/gtk/data/icons/hicolor/$$icon $(DESTDIR)$(PREFIX)/share/icons/hicolor/$$icon || exit 1; \
	done

define install_program =
install -D -m 755 $(call source,$(file)) $(call place,$(file))

endef
define install_text =
$(follow) $(call source,$(file)) | install -D -m 644 /dev/stdin $(call place,$(file))

endef
define install_completion =
$(VCPUCTL) completions $(call source,$(file)) | install -D -m 644 /dev/stdin $(call place,$(file))

endef

# Installs the page, which `make cockpit` built.
install-cockpit:
	install -D -m 644 --target-directory $(DESTDIR)$(cockpit) $(filter-out %/LICENSES.txt,$(wildcard clients/cockpit/dist/*))
	install -D -m 644 --target-directory $(DESTDIR)$(PREFIX)/share/doc/cockpit-vcpud clients/cockpit/dist/LICENSES.txt

uninstall-cockpit:
	rm -rf $(DESTDIR)$(cockpit) $(DESTDIR)$(PREFIX)/share/doc/cockpit-vcpud

# Removes the installed files, and the directories that are only for them.
uninstall:
	rm -f $(foreach file,$(programs) $(texts) $(completions),$(call place,$(file)))
	for directory in $(docs)/examples $(docs)/monitoring $(docs)/autoscaling/traces $(docs)/autoscaling $(docs); do \
		[ ! -d $(DESTDIR)$$directory ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$$directory; \
	done

# A failed command leaves no target.
.DELETE_ON_ERROR:
.PHONY: all gtk install-gtk deb reproducible ansible cockpit install-cockpit uninstall-cockpit demo check lab check-lab fuzz audit bench bench-lab lint install uninstall
