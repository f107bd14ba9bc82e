# shellcheck shell=bash
# Functions for scripts that install packages on Debian and Ubuntu. The scripts define `say` and `die`.

as_root() {
	if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

has() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

# `apt_get COMMAND…`: runs apt-get as root or with sudo, after other scripts that do.
apt_get() { as_root flock /var/lib/apt env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 "$@" </dev/null >/dev/null; }

# `install_packages PACKAGE…`: installs packages as root or with sudo, and prints their names.
install_packages() {
	(($#)) || return 0
	say "installing: $*"
	local install=(install --yes --no-install-recommends --no-remove "$@")
	# apt's list of packages may be missing or too old.
	apt_get "${install[@]}" 2>/dev/null && return
	apt_get update
	apt_get "${install[@]}" || die "cannot install: $*"
}

# `archive Debian`, `archive Ubuntu`: prints the address from which apt gets the packages.
archive() {
	local address
	address=$(archive_in_use "$1")
	if [[ ! $address ]]; then
		apt_get update
		address=$(archive_in_use "$1")
	fi
	[[ $address ]] || die "apt has no source of $1 packages"
	echo "$address"
}

archive_in_use() {
	# shellcheck disable=SC2016 # apt expands it, not the shell
	apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' "Origin: $1" "Label: $1" | sed -n 1p
}
