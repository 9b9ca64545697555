#!/usr/bin/env bash
# Installs Debian packages whose commands are missing: tools/debian.sh promtool=prometheus chromium=chromium
# A person at a terminal is asked first. Where it cannot be done, or may not, it says so and goes on: tests that need
# such a command say what is missing.
set -euo pipefail

missing=()
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
done
[ ${#missing[@]} = 0 ] && exit 0

cannot() {
    echo "tools/debian.sh: ${missing[*]} cannot be installed here ($1); install it by hand for the tests that need it" >&2
    exit 0
}
command -v apt-get >/dev/null || cannot "no apt-get"
[ "$(id -u)" = 0 ] || cannot "not root"
if [ -t 0 ] && [ "${CI:-}" != true ]; then
    read -r -p "Some tests need ${missing[*]}. Install from Debian now? Without it they are skipped. [y/N] " answer || answer=
    [[ $answer == [yY]* ]] || cannot "declined"
fi

# Packages of services would start them, Prometheus on its well-known port: for now nothing may be started.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
kept=
[ ! -e $policy ] || { kept=$(mktemp) && cp -p $policy "$kept"; }
restore() {
    rm -f "$log"
    if [ -n "$kept" ]; then mv "$kept" $policy; else rm -f $policy; fi
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
printf '#!/bin/sh\nexit 101\n' >$policy
chmod 755 $policy

echo "installing ${missing[*]} from Debian"
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -o DPkg::Lock::Timeout=120 --quiet --yes "$@" >"$log" 2>&1; }
install() { apt install --no-install-recommends "${missing[@]}"; }
install || { apt update && install; } || {
    tail -n 3 "$log" >&2
    cannot "apt-get failed"
}
