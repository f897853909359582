#!/usr/bin/env bash
# A SLURM cluster for tests, on this one machine: two virtual nodes with two CPUs and two pretended GPUs each, all
# daemons as plain processes (no systemd, no cgroups) that listen on the loopback interface only. Needs root.
#   cluster.sh install        the packages that are missing, by apt
#   cluster.sh start          starts what does not run; again is harmless, and brings a killed node back
#   cluster.sh status         exit code 3 where the cluster is not up
#   cluster.sh env            for  eval "$(tests/slurm/cluster.sh env)"  in a shell that uses sbatch, squeue, sacct
#   cluster.sh kill-node N    as a power failure of node N
#   cluster.sh restart NAME   ends the daemon slurmctld, slurmdbd, slurmd-node1 or slurmd-node2 and starts it again
#   cluster.sh stop           cancels the jobs, ends the daemons
#   cluster.sh clean          stop, then removes all state
# Partitions: `local`, the default; `urgent`, whose jobs preempt those in `local`.
# BENCH_SLURM holds configuration, logs and state (default: /tmp/bench-slurm).
set -euo pipefail

NODES=(1 2) CPUS=2
GPUS=(/dev/null /dev/zero) # any device file passes for a GPU; a regular file leaves CUDA_VISIBLE_DEVICES empty
CTLD_PORT=26810 DBD_PORT=26811 SQL_PORT=26812 NODE_PORT=26812 # node N listens on NODE_PORT + N
ROOT=$(realpath -m "${BENCH_SLURM:-/tmp/bench-slurm}")
HOST=$(hostname -s) ME=$(id -un)
MUNGE=$ROOT/run/munge.sock
HOSTS_LINE="127.0.0.1 $(printf 'node%s ' "${NODES[@]}")# the test cluster of sparse-attention-bench"
export SLURM_CONF=$ROOT/etc/slurm.conf PATH=$PATH:/usr/sbin

main() {
    case ${1:-} in
        install | start | stop | status | clean) "$1" ;;
        env) echo "export SLURM_CONF=$SLURM_CONF" ;;
        kill-node) kill_node "${2:?which node: 1 or 2}" ;;
        restart) end "${2:?which daemon}" && start ;;
        *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 2 ;;
    esac
}

install() {
    local pair missing=()
    for pair in munged:munge slurmctld:slurmctld slurmd:slurmd srun:slurm-client slurmdbd:slurmdbd \
        mariadbd:mariadb-server-core; do
        command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    ((${#missing[@]})) || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

start() {
    local i
    for i in munged slurmctld slurmd srun slurmdbd mariadbd; do
        command -v "$i" >/dev/null || die "$i is not installed: run '$0 install'"
    done
    configure
    runs munged || munged --force --key-file="$ROOT/etc/munge.key" --socket="$MUNGE" \
        --pid-file="$ROOT/run/munged.pid" --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munged.seed"
    start_accounting
    runs slurmctld || slurmctld -f "$SLURM_CONF"
    wait_for 30 scontrol show partition local || die "slurmctld does not answer: see $ROOT/log/slurmctld.log"
    for i in "${NODES[@]}"; do runs "slurmd-node$i" || slurmd -N "node$i" -f "$SLURM_CONF"; done
    scontrol update "nodename=node[1-2]" state=resume 2>/dev/null || true # such as were drained
    wait_for 60 all_up || die "not all nodes came up ($(sinfo -h -N -p local -o '%N %T %E' | tr '\n' ' ')): see $ROOT/log"
}

# Accounting is no luxury: submitit asks sacct for a job's state. Without it a job that was killed looks as if it ran.
start_accounting() {
    local tables=/usr/share/mysql log=$ROOT/log/mariadbd.log
    local options=(--no-defaults "--user=$ME" "--datadir=$ROOT/db")
    if [[ ! -d $ROOT/db/mysql ]]; then # as mariadb-install-db does, which would need more packages
        mkdir -p "$ROOT/db"
        (printf 'CREATE DATABASE mysql;\nUSE mysql;\n' && cat $tables/mysql_system_tables{,_data}.sql) |
            mariadbd "${options[@]}" --bootstrap >>"$log" 2>&1
    fi
    if ! runs mariadbd; then # not `runs || mariadbd &`: that subshell would hold the pipe of whoever called us open
        setsid mariadbd "${options[@]}" --port=$SQL_PORT --bind-address=127.0.0.1 --skip-name-resolve \
            --socket="$ROOT/run/mariadb.sock" --pid-file="$ROOT/run/mariadbd.pid" \
            --init-file="$ROOT/etc/init.sql" >>"$log" 2>&1 </dev/null &
    fi
    wait_for 60 test -S "$ROOT/run/mariadb.sock" || die "MariaDB did not start: see $log"
    runs slurmdbd || slurmdbd
    wait_for 60 sacctmgr -n list cluster || die "slurmdbd does not answer: see $ROOT/log/slurmdbd.log"
    [[ $(sacctmgr -n list cluster local) ]] || sacctmgr -i add cluster local >/dev/null
}

status() {
    local name
    for name in munged mariadbd slurmdbd slurmctld $(printf 'slurmd-node%s ' "${NODES[@]}"); do
        echo "$name: pid $(pid_of "$name" || echo none)"
    done
    runs slurmctld && all_up || return 3
    sinfo -o '%P %N %T %C %G' && squeue
}

stop() {
    local file node
    if runs slurmctld; then
        squeue -h -o %A | sort -u | xargs -r scancel || true
        wait_for 20 no_jobs || say "some jobs would not end"
    fi
    for file in "$ROOT"/run/slurmd-*.pid; do end "$(basename "$file" .pid)"; done
    for file in slurmctld slurmdbd mariadbd munged; do end "$file"; done
    for node in "${NODES[@]}"; do kill_node "$node"; done
}

clean() {
    local others
    stop
    others=$(grep -vxF "$HOSTS_LINE" /etc/hosts) && echo "$others" >/etc/hosts # in place: containers mount this file
    if [[ -e $ROOT/.test-cluster ]]; then rm -rf "$ROOT"; fi
}

# A node's slurmd and slurmstepds hold its log open; what runs in its jobs descends from them.
kill_node() {
    local holders
    holders=$(find /proc/[0-9]*/fd -lname "$ROOT/log/slurmd-node$1.log" 2>/dev/null | cut -d/ -f3 | sort -u) || true
    # shellcheck disable=SC2086
    descendants $holders | sort -u | xargs -r kill -KILL
}
descendants() {
    local pid
    for pid; do
        echo "$pid"
        # shellcheck disable=SC2046
        descendants $(ps -o pid= --ppid "$pid")
    done
}

configure() {
    local node gpu password
    mkdir -p "$ROOT"/{etc,run,log,state,spool}
    : >"$ROOT/.test-cluster"
    grep -qxF "$HOSTS_LINE" /etc/hosts || echo "$HOSTS_LINE" >>/etc/hosts # MASTER_ADDR will be a node's name
    [[ ! -e $SLURM_CONF ]] || return 0
    umask 077
    head -c 128 /dev/urandom >"$ROOT/etc/munge.key"
    password=$(sha256sum "$ROOT/etc/munge.key" | cut -c1-32)
    slurmdbd_conf "$password" >"$ROOT/etc/slurmdbd.conf"
    printf '%s\n' "CREATE OR REPLACE USER slurm@'127.0.0.1' IDENTIFIED BY '$password';" \
        "GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';" >"$ROOT/etc/init.sql"
    umask 022
    for gpu in "${GPUS[@]}"; do echo "Name=gpu File=$gpu"; done >"$ROOT/etc/gres.conf"
    slurm_conf >"$SLURM_CONF.new" && mv "$SLURM_CONF.new" "$SLURM_CONF"
}
slurm_conf() {
    local node memory
    cat <<CONF
ClusterName=local
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$CTLD_PORT
SlurmUser=$ME
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# a requeued job waits until its credential has expired: two minutes, if not for this
AuthInfo=socket=$MUNGE,cred_expire=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$MUNGE
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
# nodes claim what is written here, whatever the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
# tests wait for the scheduler: look often
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
# and for the deaths of jobs and nodes: a node that is silent for 5 s is looked after, and down some 10 s later
KillWait=5
SlurmdTimeout=5
MessageTimeout=5
ReturnToService=2
# a job in "urgent" preempts those in "local": USR2, then GraceTime, then they are requeued
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=local Nodes=ALL Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
CONF
    memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    for node in "${NODES[@]}"; do
        echo "NodeName=node$node NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((NODE_PORT + node))" \
            "CPUs=$CPUS RealMemory=$memory Gres=gpu:${#GPUS[@]}"
    done
}
slurmdbd_conf() { # PASSWORD
    cat <<CONF
AuthInfo=socket=$MUNGE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
DbdHost=$HOST
DbdPort=$DBD_PORT
SlurmUser=$ME
PidFile=$ROOT/run/slurmdbd.pid
LogFile=$ROOT/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$SQL_PORT
StorageUser=slurm
StoragePass=$1
CONF
}

say() { echo "cluster.sh: $*" >&2; }
die() {
    say "$*"
    exit 1
}
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)) && shift
    until "$@" >/dev/null 2>&1; do ((SECONDS < end)) && sleep 0.1 || return 1; done
}
all_up() { (($(sinfo -h -N -p local -o %T | grep -cxE 'idle|mixed|allocated|completing') == ${#NODES[@]})); }
no_jobs() { [[ -z $(squeue -h -t R,CG,S,CF) ]]; }

ours() { # PID: does it live, with our folder in its command line or environment?
    [[ $(ps -o stat= -p "${1:-0}" 2>/dev/null) == [!Z]* ]] && grep -qsaF "$ROOT/" "/proc/$1/cmdline" "/proc/$1/environ"
}
gone() { ! ours "$1"; }
pid_of() { # NAME of a daemon: prints its pid if it runs
    local pid
    pid=$(cat "$ROOT/run/$1.pid" 2>/dev/null) && ours "$pid" && echo "$pid"
}
runs() { pid_of "$1" >/dev/null; }
end() { # NAME: a daemon removes its pid file before it ends, so the pid is what to wait for
    local pid
    pid=$(pid_of "$1") || return 0
    kill "$pid"
    wait_for 20 gone "$pid" || { say "$1 ($pid) did not stop: SIGKILL" && kill -KILL "$pid"; }
}

main "$@"
