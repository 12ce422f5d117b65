#!/usr/bin/env bash
# Installs the Debian packages of tests/system-packages.txt that are missing. Needs root only if one is missing.
set -euo pipefail
list=${1:-$(dirname "$0")/system-packages.txt}
missing=()
while read -r package; do
    dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done < <(sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$list")
if [ ${#missing[@]} = 0 ]; then
    echo "setup-system: no Debian package is missing"
    exit 0
fi
install="apt-get install --yes --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "setup-system: missing: ${missing[*]}; there is no apt-get here: install the programs of these Debian packages" >&2
    exit 2
fi
if [ "$(id -u)" != 0 ]; then
    echo "setup-system: missing: ${missing[*]}; installing needs root: sudo $install" >&2
    exit 2
fi
echo "setup-system: installing ${missing[*]}"
apt-get update --quiet
$install
