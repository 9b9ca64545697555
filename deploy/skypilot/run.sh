#!/usr/bin/env bash
# What SkyPilot runs on each machine of redraft.yaml: Ray, and on the first one the run. When that has ended, all end.
#
#   RESTARTS    faults in a row that the run comes over by itself (default: 5)
#   FIRST_PORT  of Ray, which takes the seven from there on, and 20000 to 20999 for workers (default: 7379)
set -euo pipefail
cd "$(dirname "$0")/../.."

export PATH=$PWD/.venv/bin:$PATH RAY_AUTH_MODE=token
first_port=${FIRST_PORT:-7379} # SkyPilot may have a Ray of its own, on the usual ones
start_s=600 end_s=60 again=75
mapfile -t machines <<<"$SKYPILOT_NODE_IPS"
head=${machines[0]} own=${machines[$SKYPILOT_NODE_RANK]}

head_listens() { (exec 3<>"/dev/tcp/$head/$first_port") 2>/dev/null; }
start_ray() { # OPTIONS...
    ray start --block --disable-usage-stats --node-ip-address="$own" "$@" \
        --node-manager-port=$((first_port + 1)) --object-manager-port=$((first_port + 2)) \
        --runtime-env-agent-port=$((first_port + 3)) --dashboard-agent-grpc-port=$((first_port + 4)) \
        --dashboard-agent-listen-port=$((first_port + 5)) --metrics-export-port=$((first_port + 6)) \
        --min-worker-port=20000 --max-worker-port=20999 &
    ray=$!
}
end() { # by its number: `ray stop` would end SkyPilot's, too
    trap - EXIT
    [ -z "${ray:-}" ] || kill "$ray" 2>/dev/null || true
    local deadline=$((SECONDS + end_s))
    while [ -n "$(jobs -rp)" ] && ((SECONDS < deadline)); do sleep 1; done
    jobs -rp | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
}
trap end EXIT
until_ready() { # WHAT COMMAND...
    until "${@:2}"; do
        kill -0 "${ray:-$$}" 2>/dev/null && ((SECONDS < start_s)) || {
            echo "$1: not within $start_s s, or Ray has ended before" >&2
            exit $again
        }
        sleep 1
    done
}

if ((SKYPILOT_NODE_RANK > 0)); then
    mkdir -p "runs/$NAME/logs" # actors write their logs where they are
    until_ready "Ray's head listens" head_listens
    start_ray --address="$head:$first_port"
    while kill -0 "$ray" 2>/dev/null && head_listens; do sleep 2; done
    head_listens && exit $again # this machine's Ray is gone, and the run goes on
    exit 0
fi

start_ray --head --port="$first_port" --include-dashboard=false --resources='{"redraft_first": 1}'
until_ready "Ray's head listens" head_listens
export RAY_ADDRESS=$head:$first_port
all_joined() {
    python -c "
import ray
ray.init(log_to_driver=False)
raise SystemExit(sum(node['Alive'] for node in ray.nodes()) < ${#machines[@]})" >/dev/null 2>&1
}
until_ready "${#machines[@]} machines have joined Ray" all_joined

read -ra keys <<<"${ARGUMENTS:-}"
# Checkpoints are written where the ranks are, and copied from the first machine.
redraft train "$RECIPE" "${keys[@]}" "storage={url: $STORE}" 'learner.resources={redraft_first: 0.001}' \
    --run "$NAME" --resume-if-begun --restarts "${RESTARTS:-5}" &
train=$!
trap 'kill -TERM $train' TERM # the machine is taken away: a checkpoint, and exit code 75
# A signal ends `wait` before the command ends.
while kill -0 $train 2>/dev/null; do
    wait $train && result=0 || result=$?
done
exit "$result"
