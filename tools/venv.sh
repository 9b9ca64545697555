#!/usr/bin/env bash
# Sets up .venv with the pinned requirements of this machine's kind (cpu or gpu), once for each state of the pins.
# `tools/venv.sh requirements` leaves out Redraft itself: a layer of an image that no change of the source renews.
set -euo pipefail
cd "$(dirname "$0")/.."

kind_file=.venv/.kind # of what is set up: another `make` target keeps it
kind=${REDRAFT_REQUIREMENTS:-$(cat "$kind_file" 2>/dev/null || echo cpu)}
pins=requirements/$kind.txt
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
torch=2.13.0+cpu
# Used only when the configured package index has no CPU build of torch.
torch_cpu_index=https://download.pytorch.org/whl/cpu

stamp=.venv/.installed
want=$(cat "$pins" requirements/docs.txt pyproject.toml tools/venv.sh | sha256sum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "Redraft needs Python 3.11 to 3.13; set PYTHON to one (found: $("$python" --version))" >&2
    exit 1
}
log=.venv/pip.log
tick_s=5
[ -t 1 ] && tick_s=1

# One line: renewed on a terminal, a new one in a log.
say() { if [ -t 1 ]; then printf '\r\033[K%4d s  %s' "$SECONDS" "$1"; else printf '%4d s  %s\n' "$SECONDS" "$1"; fi; }

packages() { find .venv/lib/python*/site-packages -maxdepth 1 -name '*.dist-info' 2>/dev/null | wc -l || true; }

# How far pip is, by its log: $1 is how many packages there were before it.
how_far() {
    local found
    found=$(grep -cE '^(Collecting|Processing|Obtaining) ' "$log") || true
    if grep -q '^Installing collected' "$log"; then
        echo "$(($(packages) - $1)) of $found packages installed"
    else
        echo "$found packages fetched"
    fi
}

# install WHAT ARGUMENTS...: what pip says goes to a log (of an index, say, that has nothing for us); what is told
# meanwhile is how far it is. Fails as pip does. pip would compile on one core: that is left to `compiled`.
install() {
    local what=$1 before code=0
    shift
    before=$(packages)
    : >"$log"
    say "$what: looking for it"
    (while sleep "$tick_s" && kill -0 $$ 2>/dev/null; do say "$what: $(how_far "$before")"; done) &
    ticker=$!
    .venv/bin/python -m pip install --no-compile --disable-pip-version-check --progress-bar off "$@" \
        >>"$log" 2>&1 || code=$?
    stop_ticker
    [ "$code" -eq 0 ] && say "$what: $(how_far "$before")"
    [ -t 1 ] && echo
    return "$code"
}

stop_ticker() { [ -n "${ticker:-}" ] && { kill "$ticker" && wait "$ticker"; ticker=; } 2>/dev/null || true; }

# The same for what cannot be done without: pip's own words end the script.
needed() {
    install "$@" && return
    { grep -v "^WARNING: Location '.*' is ignored" "$log" || true; } | tail -n 20 >&2
    exit 1
}

# What has been installed, as Python would compile it when it is first imported; on all cores. A package may hold files
# for another Python, which are not this one's: what cannot be compiled says so when it is imported.
compiled() {
    say "compiling what has been installed"
    .venv/bin/python -m compileall -q -j 0 .venv/lib >>"$log" 2>&1 || true
    [ -t 1 ] && echo
    return 0
}
trap stop_ticker EXIT

echo "setting up .venv from $pins (two to four minutes, 4 GB)"
say "an empty environment"
"$python" -m venv --clear .venv
echo "$kind" >"$kind_file"
[ -t 1 ] && echo
if [ "$kind" = cpu ]; then
    install "torch" --no-deps "torch==$torch" ||
        needed "torch, from its own index" --no-deps "torch==$torch" --index-url "$torch_cpu_index"
    needed "the pinned packages" --no-deps --requirement "$pins"
else
    needed "the pinned packages" --requirement "$pins"
fi
[ "${1:-}" = requirements ] && compiled && exit
needed "what builds the documentation" --no-deps --requirement requirements/docs.txt
needed "Redraft itself" --no-deps --no-build-isolation --editable .
compiled
echo "$want" >"$stamp"
say "ready"
[ -t 1 ] && echo
exit 0
