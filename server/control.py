"""The operator's side of a running server: admit sites, submit runs, see and stop them.

Everything goes through the ``flwr`` program, the most stable surface Flower has, to the Unix socket
of the SuperLink. What a run is to do stands in its submission alone, a file of this home; Flower is
told no more than that there is a run. Any process of the operator may use this module while the
service runs in another one.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import re
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import TypeAdapter, ValidationError

from fedlatent.server.authority import issue_client_certificate
from fedlatent.server.fab import app_dir
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.settings import load_settings
from fedlatent.server.strategies.robust import check_strategy
from fedlatent.shared import flower
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, DataError, ServiceError
from fedlatent.shared.files import file_lock, read_json, write_atomic, write_json
from fedlatent.shared.keys import node_public_key, site_of_key
from fedlatent.shared.processes import MARK
from fedlatent.shared.supervisor import child_environment, running_pid
from fedlatent.shared.toml import dumps
from fedlatent.shared.wire import check_run_id

SITE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a site may be called, here as in its ``node.toml``."""

_CONNECTION = "fedlatent"
_COMMAND_S = 120.0
_POLL_S = 0.5
_ENDING_S = 5.0  # for the process of a run that was stopped a moment ago

RunState = Literal["open", "completed", "failed", "stopped"]

OVER: Mapping[str, RunState] = {
    "complete": "completed",
    "paused": "failed",
    "failed": "failed",
    "stopped": "stopped",
}
"""Status in the registry to the state of a run that does not go on by itself."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """An admitted site.

    Attributes:
        name: For people.
        node_id: Flower's number of its node.
        fingerprint: Short name of its key.
        public_key: In OpenSSH form.
        admitted: When, in UTC.
        records: How many the operator says it holds, which is what it weighs; None: its own word.
    """

    name: str
    node_id: str
    fingerprint: str
    public_key: str
    admitted: str
    records: int | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One of our runs and the Flower runs that carried it, the newest last.

    Attributes:
        run_id: Name of the run, in the registry and on the wire.
        config: The run configuration as canonical JSON.
        state: ``open`` until Flower's run ended and no resumption follows.
        reason: Why a run is not ``completed``; empty else.
        flower_runs: Flower's run ids.
        submitted: When, in UTC.
        starts: How often the registry had seen the run start when its newest Flower run began;
            what it says of the run while it still has this number, it says of an earlier one.
    """

    run_id: str
    config: str
    state: RunState
    reason: str
    flower_runs: tuple[str, ...]
    submitted: str
    starts: int = 0


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """What the SuperLink says of one of its runs, such as ``finished:completed``."""

    run_id: str
    status: str
    details: str


class Control:
    """Commands to the server whose home is given."""

    def __init__(self, home: ServerHome) -> None:
        """Use the server at ``home``; nothing is contacted yet."""
        self.home = home

    def admit(self, name: str, public_key: Path, records: int | None = None) -> Site:
        """Let the node with this public key join; the same key and name twice is no error.

        A second time may change the number of records, also while a run goes on: it holds from the
        next phase. A key that was removed may come back.

        Args:
            name: The site's name, that of its ``node.toml``.
            public_key: The node's ``node.pub``, an EC key in OpenSSH form.
            records: How many it trains on, which its replies must then state; None leaves a number
                that was given before, else takes the first that the site states in each run.

        Raises:
            ConfigError: Not such a key, no name of a site, not the name that the key's file states,
                or the name or key is admitted already with another.
            ServiceError: The server does not run or refuses.
        """
        text, fingerprint, stated = _read_public_key(public_key)
        if not re.fullmatch(SITE_PATTERN, name):
            raise ConfigError(
                "Expected a site's name of at most 64 letters, digits, dots, dashes and "
                f"underscores, got {name[:90]!r}; use the name in its node.toml."
            )
        sites = self.sites()
        known = None
        for site in sites:
            if site.name == name and site.fingerprint == fingerprint:
                known = site
            elif site.name == name or site.fingerprint == fingerprint:
                raise ConfigError(
                    f"Expected a new site, got name {name!r} and key {fingerprint}, but site "
                    f"{site.name!r} has key {site.fingerprint}; remove that site first."
                )
        if stated and stated != name:
            raise ConfigError(
                f"Expected the name that the site has in its node.toml, {stated[:90]!r} by "
                f"{public_key}, got {name!r}; admit it under that name, or have the site change "
                "'site' there, start its node and send the node.pub that this makes.",
                field="site",
            )
        if known is not None:
            if records is not None:
                known = replace(known, records=records)
                self._write_sites([known if one.name == name else one for one in sites])
            self._certify(known)
            return known
        site = Site(
            name=name,
            node_id=self._register(text, fingerprint),
            fingerprint=fingerprint,
            public_key=text,
            admitted=_now(),
            records=records,
        )
        self._write_sites([*sites, site])
        self._certify(site)
        return site

    def certificate(self, site: str) -> Path | None:
        """The site's TLS certificate, for the site to install; None where nodes need none."""
        path = self.home.certificates / f"{site}.crt"
        return path if load_settings(self.home).client_certificates and path.exists() else None

    def remove(self, name: str) -> None:
        """Take a site's admission back; its node is cut off at its next request.

        Raises:
            ConfigError: No such site.
        """
        sites = self.sites()
        gone = [site for site in sites if site.name == name]
        if not gone:
            known = ", ".join(site.name for site in sites) or "none"
            raise ConfigError(f"Expected an admitted site, got {name!r}; admitted are: {known}.")
        former = [
            site
            for site in self._sites_in(self.home.former_sites)
            if site.fingerprint != gone[0].fingerprint
        ]
        write_json(self.home.former_sites, [asdict(site) for site in [*former, *gone]])
        self._write_sites([site for site in sites if site.name != name])
        (self.home.certificates / f"{name}.crt").unlink(missing_ok=True)

    def sites(self) -> list[Site]:
        """All admitted sites, in the order of admission."""
        return self._sites_in(self.home.sites)

    def online(self) -> dict[str, str]:
        """Flower's word on each admitted site: name to ``online``, ``offline`` or ``created``."""
        answer = self._flwr("supernode", "list", _CONNECTION)
        nodes = answer.get("nodes")
        states = {
            str(node.get("node-id")): str(node.get("status"))
            for node in (nodes if isinstance(nodes, list) else [])
            if isinstance(node, dict)
        }
        return {site.name: states.get(site.node_id, "unknown") for site in self.sites()}

    def submit(self, config: RunConfig, run_id: str | None = None) -> Submission:
        """Start a run; the service resumes it by itself when its process dies.

        Args:
            config: What to train, and how.
            run_id: A new name; by default made of the configuration's name and the time.

        Raises:
            ConfigError: The name is taken.
            ServiceError: The server does not run or refuses.
        """
        check_strategy(config)
        self._require_running()
        run_id = run_id or _new_run_id(config.name)
        path = self._submission_path(run_id)
        if path.parent.exists():
            raise ConfigError(f"Expected a new run id, got {run_id!r}; choose another name.")
        submission = Submission(
            run_id=run_id,
            config=config.to_json(),
            state="open",
            reason="",
            flower_runs=(),
            submitted=_now(),
        )
        return self._launch(submission)

    def resume(self, run_id: str) -> Submission:
        """Go on with a run from its last checkpoint, in a new Flower run.

        A submission that is damaged is made anew from the run's own files.

        Raises:
            ConfigError: No such run, or it is completed.
            DataError: The submission is damaged, and so are the run's own files.
            ServiceError: The server does not run or refuses, or the run goes on already.
        """
        try:
            submission = self.submission(run_id)
        except DataError:
            submission = self.mend(run_id)
        self._require_idle(run_id)
        if submission.state == "completed":
            raise ConfigError(f"Expected an unfinished run, got {run_id!r}, which is completed.")
        return self._launch(replace(submission, state="open", reason=""))

    def stop(self, run_id: str) -> Submission:
        """End a run for good; a later ``resume`` may still go on with it.

        Raises:
            ConfigError: No such run.
            ServiceError: The server does not run or refuses.
        """
        submission = self.submission(run_id)
        reason = "stopped by the operator"
        closed = self.close(submission, "stopped", reason)
        if submission.flower_runs:
            self.stop_flower_run(submission.flower_runs[-1])
        with Registry(self.home.registry) as registry:
            if registry.run(run_id) is not None:
                registry.set_status(run_id, "stopped", reason)
        return closed

    def close(self, submission: Submission, state: RunState, reason: str) -> Submission:
        """Write down that a run is over, unless it was launched again since ``submission``."""
        with self._submissions_lock():
            now = self.submission(submission.run_id)
            if now.flower_runs != submission.flower_runs:
                return now
            closed = replace(now, state=state, reason=reason)
            self._write_submission(closed)
        return closed

    def submission(self, run_id: str) -> Submission:
        """One of our runs.

        Raises:
            ConfigError: No such run.
            DataError: Its file is damaged.
        """
        path = self._submission_path(run_id)
        if not path.exists():
            raise ConfigError(
                f"Expected a known run, got {run_id!r}; see 'fedlatent server status'."
            )
        return _read_submission(path)

    def submissions(self) -> list[Submission]:
        """All our runs whose files can be read, oldest first."""
        return self.survey()[0]

    def survey(self) -> tuple[list[Submission], dict[str, str]]:
        """All our runs, oldest first, and of those whose files are damaged what is wrong."""
        good: list[Submission] = []
        damaged: dict[str, str] = {}
        for path in sorted(self.home.runs.glob("*/submission.json")):
            try:
                good.append(_read_submission(path))
            except DataError as error:
                damaged[path.parent.name] = str(error)
        return sorted(good, key=lambda one: one.submitted), damaged

    def mend(self, run_id: str) -> Submission:
        """Make a run's damaged submission anew from what the run and the registry say of it.

        Raises:
            DataError: They say nothing, or what cannot be read.
        """
        path = self._submission_path(run_id)
        with Registry(self.home.registry) as registry:
            row = registry.run(run_id)
        try:
            text = path.with_name("config.json").read_text(encoding="utf-8")
            config = RunConfig.from_json(text)
        except (OSError, UnicodeDecodeError, ConfigError):
            row = None
        if row is None:
            raise DataError(
                f"Expected a submission in {path}, got something else, and the run has written "
                "nothing to make it anew of; start a new run."
            )
        state = OVER.get(row.status, "open")
        mended = Submission(
            run_id=run_id,
            config=config.to_json(),
            state=state,
            reason=row.sentence,
            flower_runs=("lost",),
            submitted=_now(),
            starts=row.starts - (state == "open"),
        )
        if path.is_dir():
            path.rename(path.with_suffix(f".{secrets.token_hex(4)}.damaged"))
        with self._submissions_lock():
            self._write_submission(mended)
        return mended

    def wait(self, run_id: str, timeout_s: float) -> Submission:
        """Wait until a run is no longer open.

        Raises:
            ConfigError: No such run.
            ServiceError: It is still open after ``timeout_s``, or the server stopped.
        """
        deadline = time.monotonic() + timeout_s
        while (submission := self.submission(run_id)).state == "open":
            self._require_running()
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"Expected run {run_id!r} to end within {timeout_s:g} s, but it goes on; "
                    "wait longer or stop it."
                )
            time.sleep(_POLL_S)
        return submission

    def flower_runs(self) -> list[FlowerRun]:
        """What the SuperLink knows of its runs."""
        answer = self._flwr("list", _CONNECTION)
        runs = answer.get("runs")
        return [
            FlowerRun(
                run_id=str(run.get("run-id")),
                status=str(run.get("status")),
                details=str(run.get("status-details")),
            )
            for run in (runs if isinstance(runs, list) else [])
            if isinstance(run, dict)
        ]

    def stop_flower_run(self, flower_run: str) -> None:
        """End one Flower run; one that has ended already is no error."""
        with contextlib.suppress(ServiceError):
            self._flwr("stop", flower_run, _CONNECTION)

    def log(self, flower_run: str) -> str:
        """What the ServerApp of one Flower run printed so far."""
        done = self._run("log", flower_run, _CONNECTION, "--show")
        return done.stdout + done.stderr

    def _require_idle(self, run_id: str) -> None:
        """See that no process drives the run, as its lock tells."""
        deadline = time.monotonic() + _ENDING_S
        path = self.home.run(run_id) / "lock"
        while path.exists():
            with path.open() as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"Expected run {run_id!r} to stand still, got one that goes on; watch it with "
                    f"'fedlatent server status {run_id}', or stop it first."
                )
            time.sleep(_POLL_S)

    def _submissions_lock(self) -> contextlib.AbstractContextManager[None]:
        """One writer of submissions at a time: the operator's command or the service."""
        return file_lock(self.home.runs / "submissions.lock")

    def _sites_in(self, path: Path) -> list[Site]:
        if not path.exists():
            return []
        value = read_json(path)
        try:
            return [Site(**entry) for entry in value] if isinstance(value, list) else []
        except TypeError:
            raise DataError(f"Expected a list of sites in {path}, got something else.") from None

    def _register(self, public_key: str, fingerprint: str) -> str:
        """The id of the node with this key, which Flower knows for good from its first admission.

        Flower never takes a key again that was unregistered. So a site that is removed stays known
        to it; what admits a node is our own list, which the gateway goes by.
        """
        for site in self._sites_in(self.home.former_sites):
            if site.fingerprint == fingerprint:
                return site.node_id
        with tempfile.TemporaryDirectory(prefix="fedlatent-key-") as folder:
            path = Path(folder) / "node.pub"
            path.write_text(public_key + "\n")
            try:
                answer = self._flwr("supernode", "register", str(path), _CONNECTION)
            except ServiceError:
                known = self._registered(public_key)  # by an admission that was cut short
                if known is None:
                    raise
                return known
        return str(answer.get("node-id"))

    def _registered(self, public_key: str) -> str | None:
        """The id under which Flower knows a key; no command of its own tells."""
        key = node_public_key(public_key, "the admission")
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        query = "SELECT node_id FROM node WHERE public_key = ? AND status != 'unregistered'"
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self.home.link_database.as_uri()}?mode=ro", uri=True)
            ) as database:
                row = database.execute(query, (pem,)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else str(row[0] % 2**64)  # kept as a signed number

    def _certify(self, site: Site) -> None:
        """Make the certificate that the site's node needs, where nodes need one."""
        path = self.home.certificates / f"{site.name}.crt"
        if load_settings(self.home).client_certificates and not path.exists():
            write_atomic(path, issue_client_certificate(self.home, site.name, site.public_key))

    def _launch(self, submission: Submission) -> Submission:
        with Registry(self.home.registry) as registry:
            row = registry.run(submission.run_id)
        with app_dir() as folder:
            answer = self._flwr("run", str(folder), _CONNECTION)
        runs = (*submission.flower_runs, str(answer.get("run-id")))
        starts = 0 if row is None else row.starts
        under_way = replace(submission, flower_runs=runs, starts=starts)
        with self._submissions_lock():
            self._write_submission(under_way)
        return under_way

    def _submission_path(self, run_id: str) -> Path:
        return self.home.run(check_run_id(run_id)) / "submission.json"

    def _write_submission(self, submission: Submission) -> None:
        write_json(self._submission_path(submission.run_id), asdict(submission))

    def _write_sites(self, sites: list[Site]) -> None:
        write_json(self.home.sites, [asdict(site) for site in sites])

    def _require_running(self) -> None:
        if running_pid(self.home.services) is None:
            raise ServiceError(
                f"Expected the server at {self.home.root} to run, but it does not; "
                "run 'fedlatent server start' first."
            )

    def _flwr(self, *arguments: str) -> dict[str, object]:
        """Run one ``flwr`` command and read its JSON answer."""
        self._require_running()
        done = self._run(*arguments, "--format", "json")
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {"error-message": done.stderr or done.stdout or "it printed nothing"}
        if not isinstance(answer, dict) or answer.get("success") is not True:
            message = " ".join(str(answer.get("error-message")).split())[:400]
            raise ServiceError(f"Expected 'flwr {arguments[0]}' to succeed, got: {message}")
        return answer

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        folder = self.home.services / "cli"
        work, flower_home = folder / "work", folder / "flower"
        for path in (folder, work, flower_home):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = {
            "address": flower.address_of(self.home.link_socket),
            "insecure": True,
        }
        table = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        write_atomic(flower_home / "config.toml", dumps(table).encode())
        try:
            return subprocess.run(
                [sys.executable, "-P", "-m", "fedlatent.server.launcher", "flwr", *arguments],
                cwd=work,
                env=child_environment()
                | {"FLWR_HOME": str(flower_home), MARK: str(self.home.services)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(
                f"Expected 'flwr {arguments[0]}' to answer within {_COMMAND_S:g} s, but it did "
                "not; see the superlink log."
            ) from None


def _read_public_key(path: Path) -> tuple[str, str, str]:
    """The OpenSSH text of an EC key without its comment, its fingerprint, the site it names."""
    try:
        line = path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Expected an OpenSSH public key in {path}, got {type(error).__name__}; "
            "use the node.pub that 'fedlatent client init' made."
        ) from None
    text = " ".join(line.split()[:2])
    return text, fingerprint_of(node_public_key(text, str(path))), site_of_key(line)


def fingerprint_of(key: ec.EllipticCurvePublicKey) -> str:
    """Short name of a node's key in logs: 16 hex digits of the SHA-256 of its DER form."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()[:16]


def _read_submission(path: Path) -> Submission:
    try:
        value = read_json(path)
        submission = _SUBMISSION.validate_python(value)
        if submission.run_id == path.parent.name:
            return submission
    except (DataError, ValidationError, OSError):
        pass
    raise DataError(
        f"Expected a submission in {path}, got something else; 'fedlatent server resume "
        f"{path.parent.name}' makes it anew from what the run has written."
    )


_SUBMISSION = TypeAdapter(Submission)


def _new_run_id(name: str) -> str:
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{name[:40]}-{moment}-{secrets.token_hex(2)}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
