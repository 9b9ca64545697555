#!/usr/bin/env bash
# Tries redraft.sbatch on a Slurm of two nodes on this machine: a run begins, though `ray` fails at first on each node;
# is told that its time is over, is queued again, and goes on; somebody ends it with a checkpoint. Needs root, Debian's
# slurmctld, slurmd, slurm-client, munge and iproute2, and .venv (or VENV). Nothing of the system's own Slurm is used or
# changed. TIMES is how many times longer than usual a busy machine may take.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
real=${VENV:-$root/.venv}
export NAME=slurm-try
work=$(mktemp --directory --tmpdir redraft-slurm-XXXX)
chmod 755 "$work"
export RAY_TMPDIR=$work # Ray leaves there the address of its cluster, which another program would join
pids=()
end() {
    [ -z "${job:-}" ] || timeout 20 scancel "$job" || true
    local deadline=$((SECONDS + 20)) # for the job's own clean-up
    while timeout 20 squeue --noheader 2>/dev/null | grep -q . && ((SECONDS < deadline)); do sleep 1; done
    kill "${pids[@]}" 2>/dev/null || true
    deadline=$((SECONDS + 20))
    while [ -n "$(jobs -rp)" ] && ((SECONDS < deadline)); do sleep 1; done
    kill -KILL "${pids[@]}" 2>/dev/null || true
    for n in 1 2; do
        ip netns pids "redraft-$n" 2>/dev/null | xargs --no-run-if-empty kill -KILL || true
        ip netns delete "redraft-$n" 2>/dev/null || true
    done
    ip link delete redraft-bridge 2>/dev/null || true
    [ -n "${KEEP:-}" ] || rm -rf "$work"
}
trap end EXIT

# Each node is a network of its own, so that ports are as on two machines.
ip link add redraft-bridge type bridge
ip address add 10.77.0.254/24 dev redraft-bridge
ip link set redraft-bridge up
for n in 1 2; do
    ip netns add "redraft-$n"
    ip link add "redraft-v$n" type veth peer name eth0 netns "redraft-$n"
    ip link set "redraft-v$n" master redraft-bridge up
    ip -n "redraft-$n" address add "10.77.0.$n/24" dev eth0
    ip -n "redraft-$n" link set lo up
    ip -n "redraft-$n" link set eth0 up
    ip -n "redraft-$n" route add default via 10.77.0.254
done

# An installation whose `ray` fails the first time on each node.
export VENV=$work/venv
mkdir --parents "$VENV/bin"
for command in python redraft; do
    printf '#!/bin/sh\nexec %s "$@"\n' "$real/bin/$command" >"$VENV/bin/$command"
done
cat >"$VENV/bin/ray" <<RAY
#!/bin/sh
mkdir "$work/tried-\$SLURMD_NODENAME" 2>/dev/null && { echo "this ray fails the first time" >&2; exit 1; }
exec "$real/bin/ray" "\$@"
RAY
chmod 755 "$VENV/bin/"*

cat >"$work/slurm.conf" <<CONF
ClusterName=try
SlurmctldHost=$(hostname -s)(10.77.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=30
SlurmdTimeout=120
MessageTimeout=60
SchedulerParameters=requeue_setup_env_fail
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=10.77.0.1 Port=6818 CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=10.77.0.2 Port=6818 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
mkdir "$work/state" "$work/spool-n1" "$work/spool-n2"
head -c 128 /dev/urandom >"$work/munge.key"
chmod 400 "$work/munge.key"
munged --foreground --force --socket "$work/munge.socket" --key-file "$work/munge.key" --num-threads 2 \
    --pid-file "$work/munge.pid" --seed-file "$work/munge.seed" --log-file "$work/munge.log" &
pids+=($!)
slurmctld -D &
pids+=($!)
for n in 1 2; do
    nsenter --net="/run/netns/redraft-$n" slurmd -D -N "n$n" &
    pids+=($!)
done

until_true() { # SECONDS WHAT COMMAND...
    local deadline=$((SECONDS + $1 * ${TIMES:-1})) what=$2
    until "${@:3}"; do
        ((SECONDS < deadline)) || {
            echo "not within $(($1 * ${TIMES:-1})) s: $what" >&2
            tail --lines=50 "$work"/*.log >&2
            exit 1
        }
        sleep 2
    done
    echo "$what: yes, after $SECONDS s"
}
steps() { cat "$root/runs/$NAME/metrics.jsonl" 2>/dev/null | wc -l; }
has_steps() { (($(steps) >= $1)); }
said() { grep -q "$1" "$work/job.log" 2>/dev/null; }

up() { [ "$(sinfo --noheader --format %D --states idle)" = 2 ]; }
until_true 60 "two nodes are up" up
rm -rf "runs/$NAME"
job=$(sbatch --parsable --nodes=2 --time=60 --output "$work/job.log" deploy/slurm/redraft.sbatch \
    recipes/quickstart.yaml steps=100000 start_s=600 evaluation.n=20 model.make.pretrain.steps=20 \
    learner.batch_groups=16 actors.groups=32 learner.checkpoint_every=10)
until_true 900 "the run does steps on two nodes" has_steps 3
scancel --batch --signal=TERM "$job" # what Slurm sends before the time limit
until_true 300 "it stopped with a checkpoint and was queued again" said "queued again"
said "has ended, try 1 of 3" || { echo "ray was to fail the first time" >&2 && exit 1; }
before=$(steps)
until_true 900 "it went on where it was, after $before steps" has_steps $((before + 3))
grep -h "10.77" "runs/$NAME"/run.json
scancel --batch --signal=INT "$job" # as somebody does who wants it to end
ended() { [ -z "$(squeue --noheader --jobs "$job" 2>/dev/null)" ]; }
until_true 300 "it ended when it was told so" ended
[ -d "runs/$NAME/checkpoints/$(printf 'step-%06d' "$(steps)")" ] || { echo "without a checkpoint" >&2 && exit 1; }
"$real/bin/python" - "runs/$NAME/metrics.jsonl" <<'PYTHON'
import json, sys

steps = [json.loads(line)["step"] for line in open(sys.argv[1])]
assert steps == list(range(1, len(steps) + 1)), steps
print(f"steps 1 to {len(steps)}, none missing and none twice")
PYTHON
