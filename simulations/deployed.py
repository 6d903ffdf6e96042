"""The same experiment over real services: server, gateway and a node per site, TLS on loopback.

Nothing is simulated but that all processes share one machine: a SuperLink behind the gateway, one
SuperNode and one resident node process per site, each with its own home, keys, ledger and release
log. The demonstration starts its federation here too.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedlatent.client.home import ClientHome
from fedlatent.client.policy import Caps
from fedlatent.client.service import ClientService, init_client
from fedlatent.server.control import OVER
from fedlatent.server.driver import ATTEMPTS
from fedlatent.server.home import ServerHome
from fedlatent.server.outcome import ANSWERED
from fedlatent.server.registry import Registry, Round, SiteRound
from fedlatent.server.results import RunFolder
from fedlatent.server.service import ServerService, init_server
from fedlatent.server.watch import Report, watch_run
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.errors import FedlatentError, ServiceError
from fedlatent.shared.files import write_atomic
from fedlatent.shared.schedule import phases, training_round
from fedlatent.simulations.federation import (
    Progress,
    RoundFacts,
    Simulation,
    counts_of,
    datasets,
    home_material,
    open_policy,
)

_ONLINE_TIMEOUT_S = 120.0
_START_S = 300.0  # for the start of a run's processes
_MARGIN_S = 30.0  # an attempt's own work and pause beside its deadlines
_RECORDS = "records.npz"


def node_data(run: RunConfig) -> dict[str, object]:
    """Table ``[data]`` of a node whose records :func:`write_records` wrote."""
    return {"path": _RECORDS, "schema": run.data.to_dict()}


def node_policy(run: RunConfig) -> dict[str, object]:
    """Table ``[policy]`` of a node that allows ``run`` and nothing beyond it."""
    policy = open_policy(run).model_copy(
        update={
            "allowed_sharing": (run.sharing,),
            "allow_simulation_rng": run.privacy.rng == "simulation",
            "allow_non_private": run.privacy.mechanism == "none",
            "caps": Caps(smallest_batch=0.0),  # own data may be small; all else as shipped
        }
    )
    return policy.model_dump(mode="json")


def write_records(home: ClientHome, site: SiteData) -> None:
    """Write the raw training records of a site to its home."""
    path = home.root / _RECORDS
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    np.savez_compressed(path, X=site.train)


def init_node(
    home: ClientHome, site: SiteData, run: RunConfig, address: str, authority: bytes
) -> None:
    """Make the home of a deployed node with its records.

    Args:
        home: An absent or empty folder.
        site: Whose records.
        run: What the node's policy just allows.
        address: ``host:port`` of the gateway.
        authority: The federation's ``ca.crt``, PEM.
    """
    write_records(home, site)
    init_client(
        home,
        site=site.name,
        server=address,
        ca_certificate=authority,
        data=node_data(run),
        policy=node_policy(run),
    )


@contextlib.contextmanager
def running_federation(
    server: ServerHome,
    homes: Mapping[str, ClientHome],
    federation: Federation,
    run: RunConfig,
    report: Report,
) -> Iterator[ServerService]:
    """Set a server and its nodes up, start everything and admit the sites; stop all at the end.

    Args:
        server: Home to make.
        homes: Homes to make, by site name.
        federation: The sites.
        run: What the nodes' policies just allow.
        report: Told about progress.

    Raises:
        ServiceError: A part did not come up.
    """
    report("certificates, keys and node files", 0.0)
    init_server(server, port=0)
    service = ServerService(server)
    authority = server.ca_certificate.read_bytes()
    for site in federation.sites:
        init_node(homes[site.name], site, run, service.address, authority)
    with contextlib.ExitStack() as stack:
        report("server: SuperLink, SuperExec, gateway", 0.0)
        stack.enter_context(service)
        clients = [ClientService(home) for home in homes.values()]
        counts = counts_of(datasets(federation))()
        for index, (name, home) in enumerate(homes.items()):
            report("sites admitted by their public keys", index / len(homes))
            service.control.admit(name, home.node_public_key, records=counts[name])
        report("nodes: one SuperNode and one resident process each", 0.0)
        pool = stack.enter_context(ThreadPoolExecutor(len(clients)))
        stack.callback(lambda: list(pool.map(ClientService.stop, clients)))
        list(pool.map(ClientService.start, clients))
        for index, client in enumerate(clients):
            report("nodes: let in by the server", index / len(clients))
            client.wait_online(_ONLINE_TIMEOUT_S)
        yield service


def run_deployed(
    run: RunConfig,
    federation: Federation,
    folder: Path,
    *,
    run_id: str = "simulated",
    watch: Callable[[Progress], None] | None = None,
) -> Simulation:
    """Train ``run`` over ``federation`` with real services on this machine.

    Args:
        run: the run configuration.
        federation: raw records; a node for each site.
        folder: receives ``server/`` and ``nodes/<site>/``.
        run_id: name of the run.
        watch: told how far the run is, at least once for each phase.

    Raises:
        QuorumLost: too few nodes answered well, for instance because all refused.
        ServiceError: a part did not come up, or the run did not finish.
    """
    server = ServerHome(folder.resolve() / "server")
    homes = {
        site.name: ClientHome(folder.resolve() / "nodes" / site.name) for site in federation.sites
    }
    with running_federation(server, homes, federation, run, _quiet) as service:
        service.control.submit(run, run_id)
        try:
            follow(server, run_id, run, watch)
        except FedlatentError as error:
            log = _keep_log(service, run_id)
            raise type(error)(f"{error} See {log}.") from None
    return outcome(server, RunFolder.load(server.run(run_id) / "result"), homes)


def follow(
    server: ServerHome,
    run_id: str,
    run: RunConfig,
    watch: Callable[[Progress], None] | None,
    *,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Watch a run by the server's registry until it is complete.

    Args:
        server: whose registry.
        run_id: the run.
        run: its configuration; its deadlines bound the wait.
        watch: told how far it is.
        alive: says whether the run still has a process.

    Raises:
        QuorumLost: it is paused, since too few nodes answered.
        ServiceError: it ended otherwise, lost its process, or is not done in time.
    """
    told: dict[int, Progress] = {}

    def report(_sentence: str, _share: float) -> None:
        for progress in _progress(server, run_id):
            if watch is not None and told.get(progress.phase) != progress:
                told[progress.phase] = progress
                watch(progress)
        if not alive() and _status(server, run_id) not in OVER:
            raise ServiceError(f"Expected run {run_id} to finish, but Flower ended before it.")

    watch_run(server, run_id, report, _limit_s(run))


def outcome(server: ServerHome, result: RunFolder, homes: Mapping[str, ClientHome]) -> Simulation:
    """A finished run as a simulation's outcome.

    Args:
        server: its registry has the history.
        result: of the run.
        homes: of all nodes by site name.
    """
    entries = result.facts["rounds"]
    sent = (
        {one["number"]: one["bytes_sent"] for one in entries} if isinstance(entries, list) else {}
    )
    history, run_id = [], str(result.facts["run_id"])
    for row, parts in _phases(server, run_id):
        statuses = [part.status for part in parts]
        late, refused = statuses.count("late"), statuses.count("refused")
        history.append(
            RoundFacts(
                number=row.number,
                kind=row.kind,
                round=training_round(result.config, row.number),
                seconds=(row.finished or row.started) - row.started,
                asked=row.asked,
                good=row.good,
                late=late,
                away=len(homes) - row.good - late - refused,
                loss=None,
                loss_spread=None,
                epsilon=_epsilon(parts),
                bytes_up=sum(part.bytes for part in parts),
                bytes_down=row.asked * sent.get(row.number, 0),
            )
        )
    return Simulation(
        result=result, history=history, material=home_material(homes, run_id), homes=dict(homes)
    )


def _progress(server: ServerHome, run_id: str) -> Iterator[Progress]:
    """How far each phase is that has begun."""
    with Registry(server.registry) as registry:
        run = registry.run(run_id)
    if run is None:
        return
    config = RunConfig.from_json(run.config)
    for row, parts in _phases(server, run_id):
        yield Progress(
            phase=row.number,
            phases=run.phases,
            kind=row.kind,
            round=training_round(config, row.number),
            asked=row.asked,
            answered=sum(part.status in ANSWERED for part in parts),
            loss=None,
            epsilon=_epsilon(parts),
        )


def _phases(server: ServerHome, run_id: str) -> list[tuple[Round, list[SiteRound]]]:
    """Every phase that has begun, with what each site did in it."""
    with Registry(server.registry) as registry:
        rows, parts = registry.rounds(run_id), registry.site_rounds(run_id)
    by_phase: dict[int, list[SiteRound]] = {}
    for part in parts:
        by_phase.setdefault(part.number, []).append(part)
    return [(row, by_phase.get(row.number, [])) for row in rows]


def _epsilon(parts: Iterable[SiteRound]) -> float | None:
    """The highest epsilon that sites have stated in a phase."""
    return max((part.epsilon for part in parts if part.epsilon is not None), default=None)


def _bytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(value.nbytes for value in arrays)


def _keep_log(service: ServerService, run_id: str) -> Path:
    """What the server's app printed, in a file that outlives the services."""
    path = service.home.run(run_id) / "flower.log"
    with contextlib.suppress(FedlatentError):
        last = service.control.submission(run_id).flower_runs[-1]
        write_atomic(path, service.control.log(last).encode())
    return path


def _status(server: ServerHome, run_id: str) -> str | None:
    with Registry(server.registry) as registry:
        run = registry.run(run_id)
    return None if run is None else run.status


def _limit_s(run: RunConfig) -> float:
    """Longest time that a run can take by its own deadlines, in seconds."""
    rules = run.federation
    attempt = rules.join_timeout_s + rules.round_deadline_s + _MARGIN_S
    return ATTEMPTS * attempt * len(phases(run)) + _START_S


def _quiet(_sentence: str, _share: float) -> None:
    """Tell nobody."""
