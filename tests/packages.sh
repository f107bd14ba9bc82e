# shellcheck shell=bash
# Sourced by scripts that install packages on Debian and Ubuntu. They have a `say` and a `die`.

as_root() {
	if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

has() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

# `install_packages PACKAGE…`: as root or by sudo, and says so.
install_packages() {
	(($#)) || return 0
	say "installing: $*"
	local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2
		--no-install-recommends --no-remove "$@")
	# What apt knows of the archive may be too old for that, or nothing at all.
	as_root "${install[@]}" </dev/null &>/dev/null && return
	as_root apt-get update --quiet=2 </dev/null
	as_root "${install[@]}" </dev/null >/dev/null || die "cannot install: $*"
}

# `archive Debian`, `archive Ubuntu`: the address from which this machine gets it, if it does.
archive() {
	local address
	address=$(archive_in_use "$1")
	if [[ ! $address ]]; then
		as_root apt-get update --quiet=2 </dev/null >/dev/null
		address=$(archive_in_use "$1")
	fi
	[[ $address ]] || die "apt has no source of $1 packages"
	echo "$address"
}

archive_in_use() {
	# shellcheck disable=SC2016 # apt's, not the shell's
	apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' "Origin: $1" "Label: $1" | sed -n 1p
}
