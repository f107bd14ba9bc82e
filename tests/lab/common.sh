# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts use it
# Paths and functions for the scripts of the lab.
set -euo pipefail
shopt -s inherit_errexit nullglob
umask 022

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
lab=$project/tests/lab
run=$project/target/lab # the running host: sockets, console, results of tests
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vcpud

say() { printf 'lab: %s\n' "$*"; }
die() {
	say "$@" >&2
	exit 1
}

# shellcheck source=tests/packages.sh
source "$project/tests/packages.sh"

# The files that determine the image of the host.
recipe() {
	(cd "$project" && cat tests/lab/build tests/lab/host/* tests/guest-image/{init,deadline.c} | sha256sum | cut -c 1-16)
}

image=$cache/lab-$(recipe) # host.ext4, vmlinuz, initrd, and v1/ with another vmlinuz and initrd

# Returns whether the QEMU process of the host runs. The host may hang nevertheless.
is_up() {
	[[ -e $run/pid ]] && [[ $(tr '\0' ' ' 2>/dev/null <"/proc/$(<"$run/pid")/cmdline") == *"$run/"* ]]
}

# Returns whether the host has crashed, and prints its message.
epitaph() {
	[[ -e $run/console ]] &&
		grep --text --max-count 1 --only-matching \
			-e 'Kernel panic - .*' -e 'rcu: INFO: .* detected stalls.*' -e 'watchdog: BUG: .*' "$run/console"
}

passed=() # names of tests that passed in a host before the running one
quiet=300 # seconds; a test that prints nothing for longer hangs, because each of its steps has a time limit

milliseconds() { echo $((${EPOCHREALTIME/./} / 1000)); }

# `lap WHAT SINCE`: prints a duration, and appends it to target/lab/times.
lap() {
	local tenths=$((($(milliseconds) - $2) / 100))
	say "$1 took $((tenths / 10)).$((tenths % 10)) s"
	[[ ! -d $run ]] || printf '%s\t%d.%d\n' "$1" $((tenths / 10)) $((tenths % 10)) >>"$run/times"
}

# `run_tests [NAME…]`: runs the tests for the running host, or those of them whose names contain a NAME. The name of
# those of the page for Cockpit is `page`.
run_tests() {
	[[ $* == page ]] || run_tests_in_host "$@" || return
	(($# == 0)) || [[ " $* " == *' page '* ]] || return 0
	# The page needs no test with cgroups v1.
	"$lab/sh" '[ ! -e /sys/fs/cgroup/cgroup.controllers ]' </dev/null || test_page
}

# With cgroups v1 and dbus-broker, these are the modules for them, and otherwise all modules except those of v1. The
# tests in `passed` are not run again. LAB_KILLS and LAB_SEED are forwarded (tests/lab/kills.rs).
run_tests_in_host() { # [NAME…]
	local variables
	variables=$(env | sed -n 's/^LAB_\(KILLS\|SEED\)=[0-9]*$/export &;/p')
	local skip=("${passed[@]/#/--skip=}")
	# shellcheck disable=SC2016 # the shell in the host expands it
	"$lab/sh" --quiet "$quiet" "$variables passed=${#passed[@]}; set -- ${skip[*]} ${*@Q};"'
		v1=placement::v1::
		if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
			set -- --skip "$v1" "$@"
		else
			bus="activation::\|authorization::\|bus::\|kills::"
			set -- $(lab-tests --list --format terse "$@" | sed -n "s/^\(\($v1\|$bus\).*\): test$/\1/p")
			[ $# != 0 ] || [ $passed = 0 ] || exit 0
			[ $# != 0 ] || { echo "no such test is of a host with cgroups v1 and dbus-broker" >&2; exit 1; }
			set -- --exact "$@"
			export LAB_KILLS="${LAB_KILLS:-3}"
		fi
		RUST_BACKTRACE=1 lab-tests --test-threads=1 "$@"' </dev/null
}

# Installs the page, and tests it with the running host. Returns 254 if the host is lost or a guest has stalled, as the
# tests in the host.
test_page() {
	local status=0 stall
	"$lab/sh" 'dpkg --install /usr/local/share/cockpit-vcpud.deb' </dev/null || return
	"$project/clients/cockpit/check" --lab || status=$?
	((status)) || return 0
	stall=$("$lab/sh" 'journalctl --boot --output cat --grep "detected stalls on CPUs" _COMM=qemu-system-x86' </dev/null) ||
		[[ $? == 1 ]] || return 254
	[[ ! $stall ]] || { echo "the guest of the page has stalled: $stall" && return 254; }
	return "$status"
}
