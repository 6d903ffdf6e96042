#!/bin/sh
# Scores a bundle on an emulated 64-bit ARM processor and compares with this machine.
#
#   check-aarch64.sh KEY RECORDS BUNDLE...
#
# Runs on Debian 12 or 13 on x86-64, from a checkout, without root. The first run downloads about
# 75 MB: QEMU's user-mode emulator, Debian's Python for arm64, and the aarch64 wheels of the very
# versions of numpy, onnxruntime and cryptography that are installed here. It asks the archive and
# the index that apt-get and pip already use. Nothing is installed.
#
# For each bundle and processor it prints: the largest difference of a golden output and of a score,
# relative to max(|score|, 1), and how many records are flagged on one side alone. Exit 1 when a
# bundle is refused there or a score differs by more than the bundle's tolerance. The time that it
# takes says nothing of a device.
#
# Settings by environment:
#   PYTHON    interpreter with fedlatent's packages        (.venv/bin/python of the checkout)
#   WORK      folder to keep the downloads in              (a temporary one, removed at the end)
#   CPUS      processors of QEMU to try                    (cortex-a53 cortex-a72 cortex-a76 max)
set -eu
if [ $# -lt 3 ]; then
  echo "usage: check-aarch64.sh KEY RECORDS BUNDLE..." >&2
  exit 2
fi
checkout=$(cd "$(dirname "$0")/../../.." && pwd)
python=${PYTHON:-$checkout/.venv/bin/python}
# Raspberry Pi 3, 4 and 5, and all extensions that QEMU knows (SVE, bf16, int8 matrix products).
cpus=${CPUS:-cortex-a53 cortex-a72 cortex-a76 max}
if [ -n "${WORK:-}" ]; then
  mkdir -p "$WORK"
  work=$(realpath "$WORK")
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
else
  work=$(mktemp -d)
  out=$work
  trap 'rm -rf "$work"' EXIT
fi

# fetch SUITE ARCHITECTURE FOLDER PACKAGE...: unpack packages with what they need into FOLDER/root.
fetch() {
  suite=$1 architecture=$2 folder=$3
  shift 3
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/root"
  : >"$folder/status" # an empty machine: every dependency is fetched
  keys=/usr/share/keyrings/debian-archive-keyring.gpg
  # shellcheck disable=SC2016
  archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
    'Label: Debian' | head -n 1)
  if [ -z "$archive" ]; then
    echo "error: Expected a Debian archive in this machine's sources, got none; run apt-get" \
      "update first." >&2
    exit 9
  fi
  echo "deb [signed-by=$keys] $archive $suite main" >"$folder/sources.list"
  cat >"$folder/apt.conf" <<END
APT::Architecture "$architecture";
APT::Architectures "$architecture";
APT::Sandbox::User "";
Dir::State::lists "$folder/lists";
Dir::State::status "$folder/status";
Dir::Cache "$folder/cache";
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "-";
END
  APT_CONFIG=$folder/apt.conf apt-get -q update >&2
  # -o Debug::NoLocking: apt would lock the system's own dpkg state, which is not touched
  APT_CONFIG=$folder/apt.conf apt-get -q -o Debug::NoLocking=1 install -y \
    --no-install-recommends --download-only "$@" >&2
  for package in "$folder"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
  done
}

# Debian 12's own QEMU (7.2) shows programs the host's /proc/cpuinfo, on which ONNX Runtime ends.
if [ ! -x "$work/qemu/root/usr/bin/qemu-aarch64" ]; then
  fetch trixie "$(dpkg --print-architecture)" "$work/qemu" qemu-user
fi
if [ ! -x "$work/arm64/root/usr/bin/python3.11" ]; then
  fetch bookworm arm64 "$work/arm64" python3.11-minimal libpython3.11-stdlib libstdc++6
fi
if [ ! -d "$work/site/onnxruntime" ]; then
  "$python" - >"$work/versions" <<'END'
from importlib.metadata import version
for name in ("numpy", "onnxruntime", "cryptography", "cffi"):
    print(f"{name}=={version(name)}")
END
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --dest "$work/wheels" --requirement "$work/versions"
  for wheel in "$work"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/site"
  done
fi

# The device's own package, as it would be installed there.
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$out/own" \
  "$checkout/client/edge"
"$python" -m zipfile -e "$out"/own/fedlatent_edge-*.whl "$out/package"

cat >"$out/program.py" <<'END'
import contextlib
import io
import json
import sys

from fedlatent.client.edge.main import main


def call(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main([*arguments, "--key", key, "--json"])
    return json.loads(text.getvalue())


key, records, *bundles = sys.argv[1:]
for bundle in bundles:
    print(json.dumps([call("verify", bundle), call("score", bundle, records)]), flush=True)
END
cat >"$out/compare.py" <<'END'
import json
import sys
from pathlib import Path

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.keys import VerifyKey

folder, cpus, key, _, *bundles = sys.argv[1:]
trusted = [VerifyKey.load(Path(key))]


def read(name):
    return [json.loads(line) for line in Path(folder, f"{name}.out").read_text().splitlines()]


here = read("here")
there = {cpu: read(cpu) for cpu in cpus.split()}
good = True
print(f"{'bundle':30} {'precision':13} {'processor':11} {'golden':>8} {'score':>8} {'flags':>5}")
for i, bundle in enumerate(bundles):
    runtime = EdgeModel.load(Path(bundle), trusted).bundle.manifest.runtime
    for cpu, results in there.items():
        line = f"{Path(bundle).name[:30]:30} {runtime.precision:13} {cpu:11}"
        verified, scored = results[i]
        if "error" in verified or "error" in scored:
            print(line, verified.get("error", scored.get("error"))["message"])
            good = False
            continue
        pairs = list(zip(here[i][1]["scores"], scored["scores"], strict=True))
        difference = max(abs(a - b) / max(abs(a), 1.0) for a, b in pairs)
        flags = zip(here[i][1]["flags"], scored["flags"], strict=True)
        flips = sum(a != b for a, b in flags)
        print(f"{line} {verified['golden_error']:8.1e} {difference:8.1e} {flips:5}")
        good = good and difference <= runtime.tolerance
print(f"{len(pairs)} records; flags: how many differ")
sys.exit(not good)
END

# The paths that were given hold from here, so the interpreters find the package by PYTHONPATH.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1
export OMP_NUM_THREADS OPENBLAS_NUM_THREADS ORT_DISABLE_TELEMETRY
PYTHONPATH=$out/package "$python" -P "$out/program.py" "$@" >"$out/here.out"
for cpu in $cpus; do
  PYTHONPATH=$out/package:$work/site "$work/qemu/root/usr/bin/qemu-aarch64" -cpu "$cpu" \
    -L "$work/arm64/root" "$work/arm64/root/usr/bin/python3.11" -P "$out/program.py" "$@" \
    >"$out/$cpu.out" 2>"$out/$cpu.errors" || {
    cat "$out/$cpu.errors" >&2
    exit 1
  }
done
PYTHONPATH=$out/package "$python" -P "$out/compare.py" "$out" "$cpus" "$@"
