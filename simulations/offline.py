"""``fedlatent simulate check offline``: does a command speak to anybody but this machine?

Every command of ``fedlatent`` runs in a namespace of its own that has a loopback device and no
other, with an empty home and an empty working folder, each under ``strace``. A name server on that
loopback notes what is looked up. Nothing may be: no name looked up, no address but those of this
machine, no file in the home but our own below ``.fedlatent`` and ``.cache/fedlatent``, none in the
working folder. Linux, as root or where users may make namespaces.

Examples:
    fedlatent simulate check offline --set out=runs/offline
    fedlatent simulate check offline --set out=runs/offline --set only=edge
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import fedlatent as package
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.files import write_json

ROOT = Path(package.__file__).resolve().parents[1]
OURS = (".fedlatent", ".cache/fedlatent")
"""What our own commands may write in a home, where they are given no other."""

_CALLS = "connect,sendto,sendmsg,sendmmsg"
_ADDRESS = re.compile(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"')
_LIMIT_S = 1800
_UP = 0x8914, 0x41  # SIOCSIFFLAGS; IFF_UP and IFF_RUNNING


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command line.

    Attributes:
        argv: With ``@work@`` for a folder that all steps share, and the names of `names`.
        serves: Seconds after which a command that runs until a signal is ended; 0 for others.
        status: Exit status that it is to have: not 0 for what needs a peer that is not there.
    """

    argv: tuple[str, ...]
    serves: float = 0.0
    status: int = 0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a step did.

    Attributes:
        command: Its words.
        status: Its exit status; 0 where it is the one that it was to have.
        lookups: Names that it looked up.
        contacts: Addresses of other machines that it spoke to; empty without ``strace``.
        strays: Files that it left in the home or the working folder, and that are not ours.
        said: The end of what it printed.
    """

    command: str
    status: int
    lookups: tuple[str, ...]
    contacts: tuple[str, ...]
    strays: tuple[str, ...]
    said: str

    @property
    def quiet(self) -> bool:
        """Whether nobody learned of it, and it worked."""
        return not (self.status or self.lookups or self.contacts or self.strays)


def fedlatent(words: str, serves: float = 0.0, status: int = 0) -> Step:
    """A step of the command line."""
    argv = (sys.executable, "-m", "fedlatent.cli.main", *words.split())
    return Step(argv=argv, serves=serves, status=status)


_NODE = "--home @node@"
_SERVER = "--home @server@"
_KEY = "--key @work@/demo/publisher.pub"
_STATE = "--state @work@/device"

STEPS: tuple[Step, ...] = (
    # The whole loop: gateway, SuperLink, nodes, residents, export, a device's process.
    fedlatent("demo --sites 2 --absent 1 --rounds 1 --out @work@/demo"),
    fedlatent(f"server status {_SERVER}"),
    fedlatent(f"server status @run@ {_SERVER} --json"),
    fedlatent(f"server sites @run@ {_SERVER}"),
    fedlatent(f"server start {_SERVER}", serves=60.0),
    fedlatent("server init --home @work@/server --client-certificates"),
    fedlatent("server admit a @node@/keys/node.pub --home @work@/server", status=9),
    fedlatent("server remove a --home @work@/server", status=2),
    fedlatent("server stop --home @work@/server"),
    fedlatent("data describe @work@/demo/device.npz --out @work@/described.toml"),
    fedlatent(
        "train @work@/demo/device.npz --schema @work@/described.toml --accept "
        "--out @work@/t.fedlatent"
    ),
    fedlatent(
        "client init a --server 127.0.0.1:9 --ca @server@/tls/ca.crt --data @work@/demo/device.npz "
        "--schema @work@/server/run.toml --home @work@/node"
    ),
    fedlatent(
        "server invite b @work@/server/run.toml --home @work@/server -o @work@/b.invite.toml"
    ),
    fedlatent(
        "client join @work@/b.invite.toml --data @work@/demo/device.npz --home @work@/joined"
    ),
    fedlatent("doctor --home @work@/server"),
    fedlatent("data convert @work@/demo/device.npz @work@/converted.npz"),
    fedlatent("client certificate @server@/tls/ca.crt --home @work@/node", status=2),
    fedlatent(f"client start {_NODE}", serves=60.0, status=9),
    *(fedlatent(f"client {word} {_NODE}") for word in ("status", "ledger", "releases", "runs")),
    fedlatent(f"client stop {_NODE}"),
    fedlatent(f"export global {_SERVER} --out @work@/g.fedlatent"),
    fedlatent(f"export site {_NODE} --out @work@/s.fedlatent"),
    fedlatent("keys new @work@/k.pem"),
    fedlatent("keys show @work@/k.pem"),
    fedlatent("privacy plan @work@/server/run.toml"),
    fedlatent("data list"),
    fedlatent("data check"),
    fedlatent("data get mnist --from @work@/demo", status=3),  # without --from it may connect
    fedlatent("model list"),
    fedlatent("model show gaussian --shape 16"),
    fedlatent("release init @work@/release"),
    fedlatent(f"release add @work@/release @bundle@ {_KEY}"),
    fedlatent("release refresh @work@/release"),
    fedlatent("release rollout @work@/release @model@ 1 --percent 100"),
    fedlatent("release rotate @work@/release online --new"),
    fedlatent("release status @work@/release"),
    fedlatent(f"edge verify @bundle@ {_KEY}"),
    fedlatent(f"edge info @bundle@ {_KEY}"),
    fedlatent(f"edge score @bundle@ @work@/demo/device.npz {_KEY} --out @work@/scores.csv"),
    fedlatent(f"edge encode @bundle@ @work@/demo/device.npz {_KEY} --out @work@/z.csv"),
    fedlatent(
        f"edge calibrate @bundle@ @work@/demo/device.npz {_KEY} --quantile 0.5 --out @work@/c"
    ),
    fedlatent(
        f"edge provision {_STATE} --root @work@/release/metadata/1.root.json --model @model@"
    ),
    fedlatent(f"edge update @work@/release {_STATE}"),
    fedlatent(f"edge status {_STATE}"),
    fedlatent("edge score @work@/device @work@/demo/device.npz"),
    fedlatent(f"edge serve @bundle@ {_KEY} --port 0", serves=10.0),
    fedlatent("release withdraw @work@/release @model@ 1"),
    fedlatent("schema run"),
    fedlatent("new family offline --out @work@"),
    fedlatent("simulate list"),
    fedlatent("simulate run first-look --out @work@/first"),
    fedlatent("simulate report @work@/first"),
    Step(argv=("cp", "-r", "@work@/first", "@work@/second")),
    fedlatent("simulate compare @work@/first @work@/second --out @work@/compare.html"),
    fedlatent("simulate bench --quick --repeats 1"),
    fedlatent("audit --quick --out @work@/audit"),
)
"""All commands but those that need a person: approve, refuse, readmit, resume and page."""


def names(work: Path) -> dict[str, str]:
    """What stands for the names in a step, as far as the steps before have made it."""
    server, nodes = work / "demo/server", sorted((work / "demo/nodes").glob("*"))
    runs = sorted(server.glob("runs/*/config.json"))
    bundles = sorted(server.glob("bundles/*.fedlatent"))
    run = runs[-1].parent.name if runs else ""
    return {
        "@work@": str(work),
        "@server@": str(server),
        "@node@": str(nodes[0] if nodes else work),
        "@run@": run,
        "@bundle@": str(bundles[-1] if bundles else work),
        "@model@": run and json.loads(runs[-1].read_text())["name"],
    }


def run_steps(steps: Sequence[Step], folder: Path, *, trace: bool) -> list[Finding]:
    """Run steps one after the other where there is no network.

    Args:
        steps: The command lines.
        folder: New or empty; receives home, working folder, work and ``findings.json``.
        trace: Whether to look at each call of the network with ``strace``.

    Raises:
        ServiceError: This machine makes no namespaces, or lacks ``strace``.
    """
    needed = ["unshare", "mount", *(["strace"] if trace else [])]
    if missing := [name for name in needed if shutil.which(name) is None]:
        raise ServiceError(f"Expected {missing[0]} on this machine, got none; install it.")
    for name in ("home", "cwd", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(folder / "steps.json", [asdict(step) for step in steps])
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [] if os.getuid() == 0 else ["--map-root-user"]
    command += [
        sys.executable,
        "-m",
        "fedlatent.simulations.offline",
        str(folder),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, *(["--trace"] if trace else [])],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(
            f"Expected a namespace without a network, got: {done.stderr.strip()[-300:]}; run this "
            "as root, or where users may make namespaces."
        )
    found: list[dict[str, Any]] = json.loads((folder / "findings.json").read_text())
    return [_finding(one) for one in found]


def _finding(values: dict[str, Any]) -> Finding:
    """One of ``findings.json``, which has lists."""
    lists = {name: tuple(values[name]) for name in ("lookups", "contacts", "strays")}
    return Finding(**(values | lists))


def _inside(folder: Path, *, trace: bool) -> None:
    """Take the steps; this process is alone in its namespace."""
    _raise_loopback()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    source = str(folder / "resolv.conf")
    subprocess.run(["mount", "--bind", source, "/etc/resolv.conf"], check=True)
    found = []
    with _name_server() as asked:
        for entry in json.loads((folder / "steps.json").read_text()):
            step = Step(**(entry | {"argv": tuple(entry["argv"])}))
            found.append(_take(step, folder, asked, trace=trace))
            print("+" if found[-1].quiet else "-", found[-1].command, flush=True)
            write_json(folder / "findings.json", [asdict(one) for one in found])


def _take(step: Step, folder: Path, asked: list[str], *, trace: bool) -> Finding:
    argv = [_named(word, names(folder / "work")) for word in step.argv]
    log, output = folder / "trace", folder / "output"
    watched = ["strace", "--seccomp-bpf", "-f", "-qq", "-e", f"trace={_CALLS}", "-o", str(log)]
    asked.clear()
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [*(watched if trace else []), *argv],
            cwd=folder / "cwd",
            env=_environment(folder / "home"),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(step.serves or _LIMIT_S)
        ended = process.poll() is None
        if ended:
            os.killpg(process.pid, signal.SIGTERM)
        status = process.wait(_LIMIT_S)
    said = output.read_bytes().decode(errors="replace")[-2000:]
    return Finding(
        command=" ".join(
            argv[argv.index("fedlatent.cli.main") + 1 :]
            if "fedlatent.cli.main" in argv
            else argv[:1]
        ),
        status=0 if status == step.status or (ended and step.serves) else status,
        lookups=tuple(sorted(set(asked))),
        contacts=_foreign(log.read_text(errors="replace")) if trace else (),
        strays=_strays(folder),
        said=said,
    )


def _named(word: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        word = word.replace(name, value)
    return word


def _environment(home: Path) -> dict[str, str]:
    """That of a stranger: nothing of ours is set, and the home is empty."""
    return {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _foreign(trace: str) -> tuple[str, ...]:
    """Addresses in a trace that are not of this machine."""
    found = {ip_address(address) for address in _ADDRESS.findall(trace)}
    local = {one for one in found if one.is_loopback or one.is_unspecified}
    return tuple(sorted(map(str, found - local)))


def _strays(folder: Path) -> tuple[str, ...]:
    home, cwd = folder / "home", folder / "cwd"
    found = [path.relative_to(home) for path in home.rglob("*") if not path.is_dir()]
    strays = [f"~/{path}" for path in found if not any(path.is_relative_to(own) for own in OURS)]
    return tuple(sorted([*strays, *(path.name for path in cwd.iterdir())]))


def _raise_loopback() -> None:
    """Switch the loopback device of this namespace on."""
    request, flags = _UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, request, struct.pack("16sH14x", b"lo", flags))


@contextlib.contextmanager
def _name_server() -> Iterator[list[str]]:
    """A name server that knows no name; yields the list of those that it was asked for."""
    asked: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))

        def answer() -> None:
            while True:
                data, peer = server.recvfrom(4096)
                if len(data) > 12:
                    asked.append(_question(data))
                    server.sendto(data[:2] + b"\x81\x83" + data[4:6] + bytes(6) + data[12:], peer)

        threading.Thread(target=answer, daemon=True).start()
        yield asked
        time.sleep(0.1)  # a question may still be on its way


def _question(data: bytes) -> str:
    """The name that a DNS message asks for."""
    labels, at = [], 12
    while at < len(data) and data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "replace"))
        at += 1 + data[at]
    return ".".join(labels)


def offline(*, out: Path, only: str = "") -> int:
    """Run the steps and print what each did; 1 when one was loud or did not work.

    Args:
        out: new folder for all it makes.
        only: the demo, and commands that start so.
    """
    chosen = [step for i, step in enumerate(STEPS) if not i or step.argv[3].startswith(only)]
    loud = [one for one in run_steps(chosen, out.resolve(), trace=True) if not one.quiet]
    for one in loud:
        print(json.dumps(asdict(one), indent=2))
    print(f"{len(chosen) - len(loud)} of {len(chosen)} commands are quiet and work")
    return int(bool(loud))


if __name__ == "__main__":  # the part that runs in the namespace
    _inside(Path(sys.argv[1]), trace="--trace" in sys.argv)
