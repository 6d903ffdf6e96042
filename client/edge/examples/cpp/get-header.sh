#!/bin/sh
# Puts ONNX Runtime's C header into DIR/onnxruntime, from Debian 13's package libonnxruntime-dev.
#
#   get-header.sh DIR
#
# For Debian 12, which has no such package of its own. It asks the archive that this machine already
# uses, and needs neither root nor an installation: all state is in a temporary folder. On Debian 13
# `apt-get install libonnxruntime-dev` does the same and brings the library.
# The C API only grows: a header of 1.21 works with every later library.
set -eu
if [ $# -ne 1 ]; then
  echo "usage: get-header.sh DIR" >&2
  exit 2
fi
target=$1
keys=/usr/share/keyrings/debian-archive-keyring.gpg
# shellcheck disable=SC2016
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
  'Label: Debian' | head -n 1)
if [ -z "$archive" ]; then
  echo "error: Expected a Debian archive in this machine's sources, got none; run apt-get update" \
    "first, or take the header from ONNX Runtime's release archive (README.md)." >&2
  exit 9
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
echo "deb [signed-by=$keys] $archive trixie main" >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "";
END
export APT_CONFIG="$work/apt.conf"
apt-get -q update >&2
(cd "$work" && apt-get -q download libonnxruntime-dev >&2)
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/root"
mkdir -p "$target/onnxruntime"
cp "$work"/root/usr/include/onnxruntime/*.h "$target/onnxruntime"
cp "$work"/root/usr/share/doc/libonnxruntime-dev/copyright "$target/onnxruntime"
echo "$target/onnxruntime/onnxruntime_c_api.h"
