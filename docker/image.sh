#!/bin/sh
# Builds the container image from the busbar binary built here (`make build`).
#   docker/image.sh [docker build options]
# Variables: BASE (scratch), TAG (busbar:dev), BUSBAR_BINARY (release build of this checkout).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
base=${BASE:-scratch}
tag=${TAG:-busbar:dev}
binary=${BUSBAR_BINARY:-${CARGO_TARGET_DIR:-$here/../target}/release/busbar}

[ -x "$binary" ] || {
    echo "image: no binary at $binary: run \`make build\`, or name one with BUSBAR_BINARY" >&2
    exit 1
}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/root/usr/bin" "$stage/data"
cp "$binary" "$stage/root/usr/bin/busbar"
strip --strip-debug "$stage/root/usr/bin/busbar" 2>/dev/null || true

if [ "$base" = scratch ]; then
    # Each library at the path where the loader looks for it. A static binary has none: ldd fails and prints no path.
    { ldd "$binary" || true; } | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$stage/root$(dirname "$library")"
        cp -L "$library" "$stage/root$library"
    done
fi

docker build --quiet --build-arg "BASE=$base" --tag "$tag" --file "$here/Dockerfile" "$@" "$stage"
echo "built $tag from $binary"
