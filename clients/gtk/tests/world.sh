# shellcheck shell=bash
# A world for the application: a private bus with the real polkitd, vcpud and QEMU. Scripts that use it run as root, set
# `project` to the directory of the repository, and call `end_world` at the end.

stage='' # the directory of the world
pids=()  # the processes, in the order of their start

begin_world() {
	stage=$(mktemp -d /tmp/vcpud-gtk.XXXXXX)
	chmod 755 "$stage"
	export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$stage/bus RUNTIME_DIRECTORY=$stage/run
	mkdir "$stage/actions" "$stage/rules"
	cp /usr/share/polkit-1/actions/*.policy "$project"/polkit/*.policy "$stage/actions/"
	offer_autoscale
	write_bus_configuration
}

end_world() {
	local pid
	# The bus has started it, and it can have ended before: its number can be that of another process.
	pid=$(cat "$stage/autoscale.pid" 2>/dev/null || :)
	[[ ! $pid || $(cat "/proc/$pid/comm" 2>/dev/null) != vcpud-autoscale ]] || kill "$pid"
	# In reverse order, so that no process reports a lost peer.
	while ((${#pids[@]} > 0)); do halt_process "${pids[-1]}"; done
	[[ ! $stage ]] || rm -rf "$stage"
}

# Waits at most a minute until a command succeeds.
until_true() {
	local deadline=$((SECONDS + 60))
	until "$@" >/dev/null 2>&1; do
		if ((SECONDS > deadline)); then
			echo "timed out waiting for: $*" >&2
			return 1
		fi
		sleep 0.1
	done
}

# `run NAME COMMAND…`: starts a process, and sets `pid_NAME`.
run() {
	local name=$1
	# The lines of a former process of this name are gone before the process starts.
	: >"$stage/$name.log"
	"${@:2}" >>"$stage/$name.log" 2>&1 &
	pids+=($!)
	declare -g "pid_${name//-/_}=$!"
}

# `halt NAME`: ends a process of `run`.
halt() {
	local variable=pid_${1//-/_}
	halt_process "${!variable}"
}

# Ends a process of `run` once, because its number can later be that of another process.
halt_process() { # PID
	local i
	for i in "${!pids[@]}"; do
		[[ ${pids[i]} == "$1" ]] || continue
		unset "pids[i]"
		kill "$1" 2>/dev/null || :
		wait "$1" 2>/dev/null || :
	done
}

owns() { busctl --address="$DBUS_SYSTEM_BUS_ADDRESS" status "$1"; }

write_bus_configuration() {
	cat >"$stage/bus.conf" <<-XML
		<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
		        "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
		<busconfig>
		  <type>system</type>
		  <listen>$DBUS_SYSTEM_BUS_ADDRESS</listen>
		  <servicedir>$stage/services</servicedir>
		  <policy context="default">
		    <allow user="*"/>
		    <deny own="*"/>
		    <deny send_type="method_call"/>
		    <allow send_type="signal"/>
		    <allow send_requested_reply="true" send_type="method_return"/>
		    <allow send_requested_reply="true" send_type="error"/>
		    <allow receive_type="method_call"/>
		    <allow receive_type="method_return"/>
		    <allow receive_type="error"/>
		    <allow receive_type="signal"/>
		    <allow send_destination="org.freedesktop.DBus"/>
		    <allow send_destination="org.freedesktop.PolicyKit1"/>
		  </policy>
		  <policy user="root">
		    <allow own="org.freedesktop.PolicyKit1"/>
		    <allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
		  </policy>
		  <policy user="polkitd">
		    <allow own="org.freedesktop.PolicyKit1"/>
		    <allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
		  </policy>
		  <include>$project/dbus/org.vcpud1.conf</include>
		  <include>$project/dbus/org.vcpud1.Autoscale.conf</include>
		</busconfig>
	XML
}

start_bus() {
	run bus dbus-daemon --config-file="$stage/bus.conf" --nofork --nopidfile
	until_true owns org.freedesktop.DBus
}

# `start_polkitd RULES`: with rules in JavaScript, before those of the system.
start_polkitd() {
	local polkitd
	for polkitd in /usr/lib/polkit-1/polkitd /usr/libexec/polkitd; do [[ ! -x $polkitd ]] || break; done
	echo "$1" >"$stage/rules/10-test.rules"
	# shellcheck disable=SC2016 # the other shell expands it
	run polkitd unshare --mount --propagation private sh -c \
		'mount --bind "$1" /usr/share/polkit-1/actions && mount --bind "$2" /etc/polkit-1/rules.d && exec "$3" --no-debug' \
		- "$stage/actions" "$stage/rules" "$polkitd"
	until_true owns org.freedesktop.PolicyKit1
}

start_vcpud() {
	run vcpud "$project/target/debug/vcpud"
	until_true owns org.vcpud1
}

# The bus starts vcpud-autoscale, which ends when there is nothing to scale.
offer_autoscale() {
	mkdir -p "$stage/services" "$stage/autoscale-etc/autoscale.d" "$stage/autoscale-state"
	echo 'host-cpus = 64' >"$stage/autoscale-etc/autoscale.toml"
	cat >"$stage/start-autoscale" <<-EOT
		#!/bin/bash
		echo \$\$ >"$stage/autoscale.pid"
		export CONFIGURATION_DIRECTORY="$stage/autoscale-etc" STATE_DIRECTORY="$stage/autoscale-state"
		exec "$project/target/debug/vcpud-autoscale" 2>>"$stage/autoscale.log"
	EOT
	chmod +x "$stage/start-autoscale"
	cat >"$stage/services/org.vcpud1.Autoscale.service" <<-EOT
		[D-BUS Service]
		Name=org.vcpud1.Autoscale
		Exec=$stage/start-autoscale
		User=root
	EOT
}

# `start_guest NAME SMP [OPTION…]`: a QEMU with a small Linux, which obeys lines in the socket NAME.control. The options are
# for Linux.
start_guest() {
	local name=$1 accel options=(-accel tcg,thread=multi -cpu qemu64)
	accel=$("$project/tests/guest-image/accel")
	[[ $accel != kvm ]] || options=(-accel kvm -cpu host)
	run "$name" "$project/target/guest/qemu" -name "$name,debug-threads=on" -machine q35 "${options[@]}" \
		-smp "$2" -m 256 -kernel "$project/target/guest/vmlinuz" -initrd "$project/target/guest/initrd" \
		-append "console=ttyS0 quiet panic=-1 ${*:3}" -display none -nodefaults -no-user-config \
		-serial "file:$stage/$name.serial" \
		-serial "unix:$stage/$name.control,server=on,wait=off" \
		-qmp "unix:$stage/$name.qmp,server=on,wait=off" \
		-qmp "unix:$RUNTIME_DIRECTORY/qmp/$name.sock,server=on,wait=off"
	until_true grep -q GUEST-READY "$stage/$name.serial"
}

# `tell_guest NAME COMMAND`: sends a line to the guest, and waits until it has obeyed.
tell_guest() {
	echo "$2" | socat - "UNIX-CONNECT:$stage/$1.control" >/dev/null
	until_true grep -q "DONE $2" "$stage/$1.serial"
}

# `tell_qemu NAME COMMAND`: sends a command of QMP without arguments to a QEMU of start_guest, beside vcpud.
tell_qemu() {
	printf '{"execute": "qmp_capabilities"}\n{"execute": "%s"}\n' "$2" |
		socat -t 5 - "UNIX-CONNECT:$stage/$1.qmp" | grep -c return >/dev/null
}

# `start_firmware NAME SMP`: a QEMU with a BIOS and no operating system.
start_firmware() {
	run "$1" "$project/target/guest/qemu" -name "$1,debug-threads=on" -machine q35 -accel tcg,thread=multi -cpu qemu64 \
		-smp "$2" -m 64 -display none -nodefaults -no-user-config \
		-qmp "unix:$RUNTIME_DIRECTORY/qmp/$1.sock,server=on,wait=off"
}

# `start_power NAME SMP`: a paused POWER server, which has slots of several vCPUs.
start_power() {
	run "$1" "$project/target/guest/qemu-ppc64" -name "$1,debug-threads=on" -machine pseries -S \
		-smp "$2" -m 512 -display none -nodefaults -no-user-config \
		-qmp "unix:$RUNTIME_DIRECTORY/qmp/$1.sock,server=on,wait=off"
}
