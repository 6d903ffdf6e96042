"""The Flower ServerApp: reads the run's settings and hands over to the driver.

Run-config keys: ``config`` (a run configuration as TOML or JSON; empty: synthetic heart beats),
``run-id`` (name of the run; empty: made here), ``resume`` (the run to go on with; empty: a new
one). The server home comes from ``$FEDLATENT_SERVER_HOME``, else ``~/.fedlatent/server``.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlatent.server.control import Control
from fedlatent.server.driver import SiteTable, drive, new_run_id
from fedlatent.server.home import ServerHome
from fedlatent.server.inbox import is_deployed
from fedlatent.server.quota import ReplyQuota, save_quota
from fedlatent.server.seal import Seal
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import HEARTS_SCHEMA
from fedlatent.shared.errors import ConfigError, FedlatentError

_log = logging.getLogger("fedlatent.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drive one run over ``grid``; Flower calls this once for each of its runs.

    Raises:
        FedlatentError: the run stopped early; the registry has the same sentence.
    """
    _log_to_stderr()
    home = ServerHome.find()
    try:
        home.create()
        config, run_id, resume = read_settings(context.run_config, home)
        drive(
            grid,
            config,
            home,
            run_id=run_id,
            resume=resume,
            sites=lambda: admitted_sites(home),
            counts=lambda: admitted_records(home),
            seal=Seal.of(home),
            announce=_announcer(grid, home),
        )
    except FedlatentError as error:
        _log.error("%s", error)
        raise


def read_settings(values: Mapping[str, object], home: ServerHome) -> tuple[RunConfig, str, bool]:
    """The configuration, the name of the run, and whether it is resumed.

    Raises:
        ConfigError: a value is malformed, or a run without a stored configuration is resumed.
    """
    resume, name, text = (str(values.get(key, "")) for key in ("resume", "run-id", "config"))
    if resume and name not in ("", resume):
        raise ConfigError(
            f"Expected run-id to be empty or {resume!r} when that run is resumed, got {name!r}."
        )
    if resume and not text:
        text = _stored_config(home.run(Path(resume).name) / "config.json")
    config = parse_config(text) if text.strip() else default_config()
    return config, resume or name or new_run_id(config), bool(resume)


def parse_config(text: str) -> RunConfig:
    """Read a run configuration: JSON when it starts with a brace, else TOML."""
    if text.lstrip().startswith("{"):
        return RunConfig.from_json(text)
    return RunConfig.from_toml(text)


def default_config() -> RunConfig:
    """The run that an empty configuration means: synthetic heart beats, all else as by default."""
    return RunConfig.parse({"name": "hearts", "data": HEARTS_SCHEMA.to_dict()}, "default run")


def admitted_sites(home: ServerHome) -> SiteTable:
    """Node id -> name of the sites admitted to this server; empty in simulations."""
    return {int(site.node_id): site.name for site in Control(home).sites()}


def admitted_records(home: ServerHome) -> dict[str, int]:
    """Number of records by name of the sites whose number the operator fixed."""
    sites = Control(home).sites()
    return {site.name: site.records for site in sites if site.records is not None}


def _announcer(grid: Grid, home: ServerHome) -> Callable[[ReplyQuota], None] | None:
    """Writes for the gateway what one reply may weigh, where there is a gateway."""
    if not is_deployed(grid):
        return None
    return lambda quota: save_quota(home, grid.run.run_id, quota)


def _stored_config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise ConfigError(
            f"Expected the stored configuration of the run at {path}, got none; check its name."
        ) from None


def _log_to_stderr() -> None:
    """Show the server's log lines on standard error, which Flower collects, if nobody else does."""
    logger = logging.getLogger("fedlatent")
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
