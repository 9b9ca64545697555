#!/usr/bin/env bash
# Sets up .venv with the pinned requirements of this machine's kind (cpu or gpu), once for each state of the pins.
# `tools/venv.sh requirements` leaves out Redraft itself: a layer of an image that no change of the source renews.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${REDRAFT_REQUIREMENTS:-cpu}
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
echo "setting up .venv from $pins (two to three minutes, 4 GB)"
"$python" -m venv --clear .venv
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
if [ "$kind" = cpu ]; then
    install --no-deps "torch==$torch" 2>/dev/null || install --no-deps "torch==$torch" --index-url "$torch_cpu_index"
    install --no-deps --requirement "$pins"
else
    install --requirement "$pins"
fi
[ "${1:-}" = requirements ] && exit
install --no-deps --requirement requirements/docs.txt
install --no-deps --no-build-isolation --editable .
echo "$want" >"$stamp"
