"""The same experiment on Flower's own simulation engine: ``flwr run``, Ray, one actor a processor.

One machine by default. With ``RAY_ADDRESS`` set, Flower joins that Ray cluster instead; then
every machine of the cluster must see the experiment's folder under the same path.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlatent.client.home import ClientHome
from fedlatent.client.local import NODE_ID_FILE, SIMULATION_VARIABLE
from fedlatent.client.policy import NodeConfig
from fedlatent.server.fab import app_dir
from fedlatent.server.home import HOME_VARIABLE, ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.results import FACTS, RunFolder
from fedlatent.server.service import free_port
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.errors import ConfigError, FedlatentError, ServiceError
from fedlatent.shared.files import sha256_hex, write_atomic, write_json
from fedlatent.shared.processes import MARK
from fedlatent.shared.supervisor import Service, Supervisor, child_environment, program
from fedlatent.shared.toml import dumps
from fedlatent.shared.wire import check_run_id
from fedlatent.simulations.deployed import follow, node_data, node_policy, outcome, write_records
from fedlatent.simulations.federation import Progress, Simulation

_CONNECTION = "simulation"
_CLUSTER_VARIABLE = "RAY_ADDRESS"
_END_S = 30.0  # between a run's last word and the end of Ray
_PROBE_S = 0.5


def run_on_flower(
    run: RunConfig,
    federation: Federation,
    folder: Path,
    *,
    run_id: str = "simulated",
    watch: Callable[[Progress], None] | None = None,
) -> Simulation:
    """Train ``run`` over ``federation`` with Flower's simulation engine.

    Args:
        run: the run configuration.
        federation: raw records; a node for each site.
        folder: receives ``server/`` and ``nodes/<site>/``.
        run_id: name of the run.
        watch: told how far the run is, at least once for each phase.

    Raises:
        ConfigError: the folder has a run of that name.
        QuorumLost: too few nodes answered well, for instance because all refused.
        ServiceError: Ray is not installed, Flower did not come up, or the run did not finish.
    """
    server = ServerHome(folder.resolve() / "server")
    server.create()
    if server.run(check_run_id(run_id)).exists():
        raise ConfigError(f"Expected a new run, got {run_id!r} again; take another name.")
    nodes = folder.resolve() / "nodes"
    homes = {site.name: ClientHome(nodes / site.name) for site in federation.sites}
    for site in federation.sites:
        _write_home(homes[site.name], site, run)
    log = server.run(run_id) / "flower.log"
    environment = {HOME_VARIABLE: str(server.root), SIMULATION_VARIABLE: str(nodes)}
    with flower_engine(server.services, environment) as engine:
        values = {"config": run.to_json(), "run-id": run_id}
        with engine.submit(values, len(homes), log) as process:
            try:
                follow(server, run_id, run, watch, alive=lambda: process.poll() is None)
            except FedlatentError as error:
                error.args = (f"{_in_names(str(error), homes)} See {log}.",)
                raise error from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
    return outcome(server, _with_names(server, run_id, homes), homes)


@dataclass(frozen=True, kw_only=True)
class FlowerEngine:
    """A running SuperLink with Flower's simulation engine.

    Attributes:
        folder: of its processes' logs and working directories.
        port: on loopback.
    """

    folder: Path
    port: int

    @contextlib.contextmanager
    def submit(
        self, values: Mapping[str, str], nodes: int, log: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start ``flwr run``; the process ends with the run, and is ended with the block.

        Args:
            values: run-config values of the app.
            nodes: number of simulated nodes.
            log: file that receives what Flower and the app print.
        """
        command = self.folder / "cli"
        (command / "work").mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = {"address": f"127.0.0.1:{self.port}", "insecure": True}
        table = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        write_atomic(command / "flower" / "config.toml", dumps(table).encode())
        write_atomic(command / "run.toml", dumps(values).encode())
        log.parent.mkdir(parents=True, exist_ok=True)
        options = ["--stream", "--run-config", str(command / "run.toml"), "--federation-config"]
        variables = {"FLWR_HOME": str(command / "flower"), MARK: str(self.folder)}
        with app_dir() as app, log.open("wb") as output:
            process = subprocess.Popen(
                [program("flwr"), "run", str(app), _CONNECTION, *options, _sizes(nodes)],
                cwd=command / "work",
                env=child_environment() | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()


@contextlib.contextmanager
def flower_engine(folder: Path, environment: Mapping[str, str]) -> Iterator[FlowerEngine]:
    """Start a SuperLink of its own with Flower's simulation engine; end all it started.

    It listens on loopback without authentication, as the one that Flower starts by itself does:
    other users of this machine could send it a run meanwhile.

    Args:
        folder: Receives logs and working directories.
        environment: Variables for the apps on both sides.

    Raises:
        ServiceError: Ray is not installed, or the SuperLink did not come up.
    """
    if importlib.util.find_spec("ray") is None:
        raise ServiceError(
            "Expected Ray for Flower's simulation engine, found none; install flwr[simulation]."
        )
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fl-ray-", ignore_cleanup_errors=True) as ray_folder:
        superlink = Service(
            name="superlink",
            argv=(
                program("flower-superlink"),
                *("--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)),
            ),
            env={**environment, **_ray_environment(environment, ray_folder)},
            ready=lambda _log: _answers(port),
        )
        with Supervisor(folder.resolve(), [superlink]):
            yield FlowerEngine(folder=folder.resolve(), port=port)


def _write_home(home: ClientHome, site: SiteData, run: RunConfig) -> None:
    """A node's home with its records, without keys: nothing of it meets a network."""
    text = dumps({"site": site.name, "data": node_data(run), "policy": node_policy(run)})
    NodeConfig.from_toml(text, str(home.config))
    home.create()
    write_records(home, site)
    write_atomic(home.config, text.encode(), 0o600)


def _sizes(nodes: int) -> str:
    """Flower's ``--federation-config``: the nodes, and no more actors than nodes."""
    sizes = f"num-supernodes={nodes} client-resources-num-cpus=1"
    if os.environ.get(_CLUSTER_VARIABLE):  # the cluster knows its own processors
        return sizes
    return f"{sizes} init-args-num-cpus={min(nodes, len(os.sched_getaffinity(0)))}"


def _ray_environment(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """Variables that keep Ray quiet, closed to others, and out of the common temporary folder.

    On a cluster the actors get the apps' variables through the job; the rest is the cluster's own.
    """
    quiet = {
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "SPT_NOENV": "1",  # a process that renames itself keeps the supervisor's mark
    }
    if os.environ.get(_CLUSTER_VARIABLE):
        job = {"runtime_env": {"env_vars": dict(environment)}}
        return quiet | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return quiet | token | {"RAY_TMPDIR": folder}


def _with_names(server: ServerHome, run_id: str, homes: Mapping[str, ClientHome]) -> RunFolder:
    """The result with the sites' names in its facts, on disk as well.

    Flower draws a node's id when the run is under way, so the server could not know the names;
    each home was told its own id.
    """
    folder = server.run(run_id) / "result"
    facts = _renamed(RunFolder.load(folder).facts, _names(homes))
    write_json(folder / FACTS, facts)
    data = (folder / FACTS).read_bytes()
    with Registry(server.registry) as registry:
        registry.add_artefact(run_id, "result", folder / FACTS, sha256_hex(data), len(data))
    return RunFolder.load(folder)


def _names(homes: Mapping[str, ClientHome]) -> dict[str, str]:
    """Site name by the name that the server gave a node it had no name for."""
    names = {}
    for name, home in homes.items():
        with contextlib.suppress(FileNotFoundError):  # a node that never got a message
            names[f"node-{(home.root / NODE_ID_FILE).read_text()}"] = name
    return names


def _in_names(sentence: str, homes: Mapping[str, ClientHome]) -> str:
    for given, name in _names(homes).items():
        sentence = sentence.replace(given, name)
    return sentence


def _renamed(value: object, names: Mapping[str, str]) -> object:
    """``value`` with every text that is a key of ``names`` replaced, keys of tables too."""
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_PROBE_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0
