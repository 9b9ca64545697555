#!/usr/bin/env bash
# Runs checks of this tree one after another, each to its end, and sums up: `tools/check.sh style types unit integration`.
# Its exit status is the worst of theirs. .venv must be there (`make setup`).
set -uo pipefail
cd "$(dirname "$0")/.."
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1 # it would ask the network for a newer version

python=.venv/bin/python
pytest() { "$python" -m pytest -m "not prove" -n 2 --dist loadfile "$@"; }

style() {
    local worst=0
    "$python" -m ruff check . || worst=$?
    "$python" -m ruff format --check . || worst=$?
    return $worst
}
types() { "$python" -m pyright; }
docs() { NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --quiet; }
unit() { pytest tests/unit; }
integration() { pytest tests/integration tests/chaos --no-loadscope-reorder; }

trap 'exit 130' INT # one Ctrl-C ends all of it

worst=0
summary=
for check in "$@"; do
    printf '\n== %s\n' "$check"
    began=$SECONDS
    "$check"
    status=$?
    said=passed
    [ $status = 0 ] || said="FAILED ($status)"
    summary+=$(printf '%-12s %-12s %5d s' "$check" "$said" $((SECONDS - began)))$'\n'
    [ $status -le $worst ] || worst=$status
done
printf '\n== summary\n%s' "$summary"
exit $worst
