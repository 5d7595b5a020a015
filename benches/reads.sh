#!/bin/sh
# What reading costs: ten tail subscribers beside one; a cold backlog read beside a live producer; a restart with much on
# the disk. One cluster of three processes on this machine; prints figures, judges nothing.
#   benches/reads.sh [--backlog GIB] [--seconds N]
# Needs busbar and busbar-bench in the target folder, and about seven times the backlog of free disk. As root the page
# cache is dropped before the backlog is read and before the restart; else it says that it was not.
set -eu

backlog=5
seconds=10
while [ $# -gt 0 ]; do
    case $1 in
        --backlog) backlog=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        *) sed -n '2,7s/^# //p' "$0" >&2; exit 2 ;;
    esac
done
bin="${CARGO_TARGET_DIR:-target}/release"
dir=$(mktemp -d)
port=17700 # and 17800 for the peers
server=127.0.0.1:$port
up=""
finish() {
    [ -z "$up" ] || kill "$up" 2>/dev/null || true
    wait
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

"$bin/busbar" dev up -n 3 --dir "$dir/cluster" --base-port "$port" >"$dir/up.out" 2>&1 &
up=$!
until grep -q '^ready$' "$dir/up.out"; do sleep 0.2; done

nodes() { sed -n 's/^[0-9].* \([0-9][0-9]*\) *\/.*$/\1/p' "$dir/up.out"; }
from_disk() { for pid in $(nodes); do sed -n 's/^read_bytes: //p' "/proc/$pid/io"; done | tr '\n' ' '; }
memory() { for pid in $(nodes); do awk '/VmHWM/ {printf "%d ", $2 / 1024}' "/proc/$pid/status" 2>/dev/null; done; }
load() { # TOPIC OPTIONS..
    topic=$1
    shift
    "$bin/busbar-bench" --server "$server" --topic "$topic" --partitions 1 --replicas 3 "$@"
}
drop_cache() { sync; echo 1 >/proc/sys/vm/drop_caches 2>/dev/null || echo "(the page cache could not be dropped)"; }

echo "== tail subscribers: 16 KiB records, 1,000 a second, $seconds s; bytes that each got"
for count in 1 10; do
    "$bin/busbar" topic create "tail$count" --partitions 1 --replicas 3 --server "$server" >"$dir/create.out"
    before=$(from_disk)
    readers=""
    for reader in $(seq "$count"); do
        timeout $((seconds + 4)) "$bin/busbar" sub "tail$count" --from latest --server "$server" 2>"$dir/sub.err" |
            wc -l >"$dir/tail$count-$reader" &
        readers="$readers $!"
    done
    load "tail$count" --size 16384 --rate 1000 --warmup 1s --duration "${seconds}s" 2>&1 | grep -E '^ack |^checks'
    # shellcheck disable=SC2086 # several words on purpose
    wait $readers
    cat "$dir/tail$count"-* | awk -v n="$count" '{sum += $1 * 16384} END {printf "%d readers: %.1f MB in all\n", n, sum / 1e6}'
    echo "read from the disk, bytes by node: before $before after $(from_disk)"
done

echo "== a backlog of $backlog GiB, read cold beside a producer of 1,000 records a second"
written=0
while [ "$written" -lt $((backlog * 1073741824)) ]; do
    load backlog --size 16384 --consumers 0 --warmup 0s --duration 10s >"$dir/fill.out" 2>&1
    records=$(sed -n 's/^publish .*(\([0-9,]*\) records.*/\1/p' "$dir/fill.out" | tr -d ,)
    written=$((written + records * 16384))
done
echo "$((written / 1000000)) MB stored; largest resident memory by node: $(memory)MiB"
sleep 20 # the journal is retired
drop_cache
for round in 1 2 3; do
    echo "alone:   $(load "alone$round" --size 1024 --rate 1000 --duration "${seconds}s" 2>&1 | grep '^ack ')"
    drop_cache
    # Reading and printing give way to the brokers where the cores are short: elsewhere it would be another machine.
    timeout $((seconds + 2)) nice -n 19 "$bin/busbar" sub backlog --from earliest --server "$server" 2>"$dir/sub.err" |
        nice -n 19 wc -l >"$dir/caught" &
    reader=$!
    echo "beside:  $(load "beside$round" --size 1024 --rate 1000 --duration "${seconds}s" 2>&1 | grep '^ack ')"
    wait "$reader" || true
    echo "         the reader got $(awk '{printf "%.0f MB", $1 * 16384 / 1e6}' "$dir/caught")"
done

echo "== restart of a node with $(du -sh "$dir/cluster/node-2" | cut -f1) on the disk, after kill -9"
"$bin/busbar" dev stop 2 --kill --dir "$dir/cluster" >"$dir/stop.out"
drop_cache
before=$(date +%s%N)
"$bin/busbar" dev start 2 --dir "$dir/cluster" >"$dir/start.out"
echo "answers after $((($(date +%s%N) - before) / 1000000)) ms"
until "$bin/busbar" topic describe backlog --server "$server" -o json | grep -q '"in_sync":\[1,2,3\]'; do sleep 0.05; done
echo "in sync after $((($(date +%s%N) - before) / 1000000)) ms"
echo "largest resident memory by node: $(memory)MiB"
