#!/bin/sh
# busbar-bench against a fresh local three-node cluster, which is removed afterwards. `make bench` calls it.
#   benches/local.sh [busbar-bench options]
set -eu

bin="${CARGO_TARGET_DIR:-target}/release"
port=17600
out=$(mktemp)
"$bin/busbar" dev up -n 3 --ephemeral --base-port "$port" >"$out" &
up=$!
trap 'kill "$up" 2>/dev/null; wait "$up" || true; rm -f "$out"' EXIT

until grep -q '^ready$' "$out"; do
    kill -0 "$up" 2>/dev/null || exit 1
    sleep 0.2
done
"$bin/busbar-bench" --server "127.0.0.1:$port" "$@"
