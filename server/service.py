"""The aggregation server as a set of supervised processes.

SuperLink (Flower's server, on a Unix socket of this account alone, with node authentication and a
database), SuperExec (starts the ServerApp of a run) and the gateway (the one port). Runs whose
process died are resumed from their checkpoint.
"""

import argparse
import contextlib
import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from fedlatent.server.authority import (
    certificate_names,
    create_authority,
    ensure_certificate,
    ensure_secret,
    fingerprint,
    issue_certificate,
    probe_context,
)
from fedlatent.server.control import OVER, Control, Submission
from fedlatent.server.home import HOME_VARIABLE, ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.settings import ServerSettings, load_settings, save_settings
from fedlatent.shared import flower
from fedlatent.shared.contact import Contact, Silence
from fedlatent.shared.errors import ConfigError, FedlatentError, ServiceError, exit_code_of
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.processes import marked_processes
from fedlatent.shared.sockets import check_folder
from fedlatent.shared.supervisor import Service, ServiceStatus, Supervisor, run_until_signal

MAX_RESUMES = 5
"""How often one run is resumed by itself; then it needs the operator."""

UNANSWERED = "it does not answer any more"

_PROBE_S = 2.0
_QUIET_S = 60.0  # SuperExec asks for tasks several times a second
_SIGN_S = 10.0  # for its next sign of life, as after all of us were stopped for a while
_WATCH_S = 1.0
_RENEW_S = 60.0  # between two looks at the certificates
_LOST_S = 4.0  # a run without a process for so long is looked at
_ASK_S = 5.0  # least time between two questions to the SuperLink


def init_server(
    home: ServerHome,
    *,
    host: str = "127.0.0.1",
    port: int = 8443,
    names: Sequence[str] = (),
    client_certificates: bool = False,
) -> ServerSettings:
    """Make a server home: settings, authority, certificate, signing key.

    Args:
        home: An absent or empty folder.
        host: Address that the gateway binds; ``0.0.0.0`` serves other machines.
        port: Its port; 0 takes a free one, now and for good.
        names: DNS names and addresses that nodes use to reach it, for the certificate.
        client_certificates: Whether nodes need a certificate of the authority to connect at all;
            ``server admit`` then makes one for each site.

    Raises:
        ConfigError: That is no port.
        ServiceError: The home is in use, a name is malformed, or this machine cannot listen there.
    """
    if home.config.exists():
        raise ServiceError(f"Expected no server in {home.root}, found one; choose another folder.")
    free = free_port(host)
    if not 0 <= port <= 65535:
        raise ConfigError(f"Expected a port of 0 to 65535, got {port}; correct it.")
    settings = ServerSettings(
        host=host,
        port=port or free,
        names=tuple(names),
        client_certificates=client_certificates,
    )
    certificate_names(settings.certified)
    home.create()
    create_authority(home)
    issue_certificate(home, settings.certified)
    SigningKey.generate(home.signing_key)
    save_settings(home, settings)
    return settings


class ServerService:
    """Starts, watches and stops the processes of one server."""

    def __init__(self, home: ServerHome) -> None:
        """Read the settings; nothing starts yet.

        Raises:
            ConfigError: There is no server in ``home``.
        """
        self.home = home
        self.settings = load_settings(home)
        self.control = Control(home)
        self.supervisor = Supervisor(home.services, self.services())
        self._stopping = threading.Event()
        self._resumer: threading.Thread | None = None
        self._said: set[str] = set()  # what goes wrong now, so that it is said once

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def address(self) -> str:
        """``host:port`` of the gateway, as a node on this machine reaches it."""
        host = self.settings.near
        return f"[{host}]:{self.settings.port}" if ":" in host else f"{host}:{self.settings.port}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, for the sites to compare."""
        return fingerprint(self.home)

    def start(self) -> None:
        """Start all processes and wait until nodes can connect; resume unfinished runs.

        Raises:
            ServiceError: A process did not come up, another server runs in this home, or other
                accounts can write it.
        """
        check_folder(self.home.root)
        ensure_secret(self.home)
        self._renew()
        self.supervisor.start()
        self._stopping.clear()
        self._resumer = threading.Thread(target=self.watch_runs, name="resumer", daemon=True)
        self._resumer.start()

    def stop(self) -> None:
        """Stop all processes; open runs go on at the next start."""
        self._stopping.set()
        if self._resumer is not None:
            self._resumer.join()
            self._resumer = None
        self.supervisor.stop()

    def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop; for the main thread."""
        run_until_signal(self.start, self.stop)

    def status(self) -> list[ServiceStatus]:
        """The state of each process."""
        return self.supervisor.status()

    def services(self) -> list[Service]:
        """The processes of this server, in the order in which they start."""
        home, link = self.home, flower.address_of(self.home.link_socket)
        launcher = (sys.executable, "-P", "-m", "fedlatent.server.launcher")
        variables = {HOME_VARIABLE: str(home.root)}
        secret = ("--superexec-auth-secret-file", str(home.superexec_secret))
        superlink = Service(
            name="superlink",
            argv=(
                *(*launcher, "superlink", "--host", link),
                # Flower checks nodes' keys only where it is told to use TLS; the socket has none
                *("--ssl-ca-certfile", str(home.ca_certificate)),
                *("--ssl-certfile", str(home.certificate)),
                *("--ssl-keyfile", str(home.certificate_key)),
                *("--database", str(home.link_database)),
                *("--isolation", "process", *secret),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ),
            ready=lambda _log: _healthy(home.link_socket),
            env=variables,
            diagnose=_diagnose,
            ails=lambda: "" if _healthy(home.link_socket) else UNANSWERED,
        )
        silence = Silence(Contact(home.services / "superexec"))
        superexec = Service(
            name="superexec",
            argv=(
                *(*launcher, "superexec", "--insecure"),
                *("--runtime-api-address", link, *secret),
            ),
            env=variables,
            ready=lambda log: "Starting Flower SuperExec" in log,
            ails=lambda: silence.ailment(_QUIET_S),
            patience_s=_SIGN_S,
        )
        answering = answers(home, self.settings.near, self.settings.port)
        gateway = Service(
            name="gateway",
            argv=(sys.executable, "-m", "fedlatent.server.gateway", "--home", str(home.root)),
            ready=answering,
            diagnose=_diagnose,
            ails=lambda: "" if answering("") else UNANSWERED,
        )
        return [superlink, superexec, gateway]

    def watch_runs(self) -> None:
        """Close runs that ended, resume those whose process died, until the server stops."""
        missing_since: float | None = None
        asked, renewed, unfit = 0.0, time.monotonic(), set[str]()
        while not self._stopping.wait(_WATCH_S):
            now = time.monotonic()
            wrong: set[str] = set()
            if now - renewed >= _RENEW_S:
                renewed, unfit = now, self._renewal()
            wrong |= unfit
            try:
                submissions, damaged = self.control.survey()
                wrong |= {self._mended(run_id) for run_id in damaged}
                open_runs = [one for one in submissions if one.state == "open"]
                open_runs = [one for one in open_runs if not self._closed(one, wrong)]
                alive = len(self._server_apps())
                if len(open_runs) <= alive:
                    missing_since = None
                    continue
                missing_since = missing_since or now
                if now - missing_since >= _LOST_S and now - asked >= _ASK_S:
                    asked = now
                    self._look_after(open_runs, alive, wrong)
            except (FedlatentError, OSError) as error:
                wrong.add(str(error))
            finally:
                self._say(wrong)

    def _mended(self, run_id: str) -> str:
        """Mend a damaged submission; what to say about it."""
        try:
            self.control.mend(run_id)
        except (FedlatentError, OSError, SQLAlchemyError) as error:
            return f"run {run_id}: {_brief(error)}"
        return f"run {run_id}: its submission was damaged, and is made anew"

    def _say(self, wrong: set[str]) -> None:
        """Say what is wrong with the runs, each thing once for as long as it lasts."""
        for sentence in sorted(wrong - self._said):
            _tell(f"looking after runs and certificates: {sentence}")
        self._said = wrong

    def _renewal(self) -> set[str]:
        """Renew certificates; what is wrong if that fails."""
        try:
            self._renew()
        except (FedlatentError, OSError) as error:
            return {str(error)}
        return set()

    def _renew(self) -> None:
        """Renew certificates whose time has come; the gateway takes them up by itself."""
        reason = ensure_certificate(self.home, self.settings.certified)
        if reason:
            _tell(f"the server has a new certificate: the old one will not do, since {reason}")

    def _closed(self, submission: Submission, wrong: set[str]) -> bool:
        """Close a run whose own last word, since its newest launch, is that it is over."""
        try:
            with Registry(self.home.registry) as registry:
                run = registry.run(submission.run_id)
            state = None if run is None else OVER.get(run.status)
            if run is None or state is None or run.starts <= submission.starts:
                return False
            self.control.close(submission, state, run.sentence)
        except (FedlatentError, OSError, SQLAlchemyError) as error:
            wrong.add(f"run {submission.run_id}: {_brief(error)}")
            return False
        return True

    def _server_apps(self) -> list[int]:
        found = marked_processes(self.home.services).items()
        return [pid for pid, command in found if "fedlatent.server.launcher serverapp" in command]

    def _look_after(self, open_runs: list[Submission], alive: int, wrong: set[str]) -> None:
        """Resume those of ``open_runs`` whose process died without a last word."""
        statuses = {run.run_id: run.status for run in self.control.flower_runs()}
        for submission in open_runs:
            last = submission.flower_runs[-1:]
            status = statuses.get(last[0], "unknown") if last else "unknown"
            try:
                if self._closed(submission, wrong) or not is_lost(status, alive):
                    continue
                if len(submission.flower_runs) > MAX_RESUMES:
                    reason = f"its process died {MAX_RESUMES + 1} times; see the log of the run"
                    self.control.close(submission, "failed", reason)
                    continue
                if last:
                    self.control.stop_flower_run(last[0])
                self.control.resume(submission.run_id)
            except (FedlatentError, OSError, SQLAlchemyError) as error:
                wrong.add(f"run {submission.run_id}: {_brief(error)}")


def _brief(error: Exception) -> str:
    """Our own sentences as they are; of others the kind, which a database may make pages of."""
    return str(error) if isinstance(error, FedlatentError | OSError) else type(error).__name__


def is_lost(flower_status: str, alive: int) -> bool:
    """Whether an open run has no process any more.

    Args:
        flower_status: Flower's status of its newest Flower run, or ``unknown``.
        alive: How many ServerApp processes live; with none, a run that Flower still takes for
            running is lost as well, a minute before Flower notices.
    """
    if flower_status.startswith("finished:") or flower_status == "unknown":
        return True
    return alive == 0 and flower_status in ("starting", "running")


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now.

    Raises:
        ServiceError: This machine cannot listen on that address.
    """
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:
        raise ServiceError(
            f"Expected an address of this machine to listen on, got {host!r} "
            f"({error.strerror if isinstance(error, OSError) else 'no name'}); use one of its own, "
            "or 0.0.0.0 for all of IPv4 and :: for all."
        ) from None


def _tell(sentence: str) -> None:
    """Say something to the operator, whose terminal may be gone."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def answers(home: ServerHome, host: str, port: int) -> Callable[[str], bool]:
    """A probe: does a gateway with our certificate answer there?"""

    def probe(_log: str) -> bool:
        try:
            context = probe_context(home)
        except (OSError, FedlatentError):  # a file that is being replaced, or is damaged
            return False
        connection = http.client.HTTPSConnection(host, port, timeout=_PROBE_S, context=context)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 403
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return probe


def _healthy(path: Path) -> bool:
    """Does the SuperLink answer on its socket?"""
    connection = http.client.HTTPConnection("superlink")
    with contextlib.closing(connection), socket.socket(socket.AF_UNIX) as link:
        link.settimeout(_PROBE_S)
        connection.sock = link
        try:
            link.connect(str(path))
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _diagnose(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if "address already in use" in line.lower():
            return "its port is taken by another program; stop that or change server.toml"
    errors = [line for line in lines if "ERROR" in line or "Error" in line]
    return (errors or lines or ["it printed nothing"])[-1][:300]


def main() -> None:
    """Command line: ``python -m fedlatent.server.service --home DIR``, until SIGTERM."""
    parser = argparse.ArgumentParser(description="Run the aggregation server of one federation.")
    parser.add_argument("--home")
    home = parser.parse_args().home
    sys.exit(exit_code_of(lambda: ServerService(ServerHome.find(home)).run()))


if __name__ == "__main__":
    main()
