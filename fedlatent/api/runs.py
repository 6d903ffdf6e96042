"""Federations on this machine, and bundles of finished runs."""

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from pydantic import BaseModel

from fedlatent.api.progress import watched
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.export import export_site, site_contents
from fedlatent.client.home import ClientHome
from fedlatent.server.export import export_global, global_contents
from fedlatent.server.home import ServerHome
from fedlatent.shared.config import Privacy, RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export.bundling import BundleReport
from fedlatent.shared.notebook import facts
from fedlatent.simulations.federation import Engine, Simulation, datasets
from fedlatent.simulations.federation import simulate as run_here
from fedlatent.simulations.report import Report, report_on
from fedlatent.simulations.train import KEY, leave_out, run_of, signed

if TYPE_CHECKING:
    import pandas as pd

_RUN_ID = "simulated"


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult:
    """What a simulated federation gave.

    Attributes:
        run: the configuration.
        present: the clients that took part.
        absent: those that did not.
        folder: what the run has left; a temporary one goes with this object.
        simulation: the server's result and what each client kept.

    Examples:
        >>> result = fl.simulate({"privacy": {"epsilon": 4}}, clients, progress=False)
        >>> result.epsilon <= 4
        True
        >>> result.rounds.columns[:3].tolist()
        ['kind', 'round', 'seconds']
        >>> model = result.export("run.fedlatent")
        >>> model.score(clients.sites[0].train[:5]).flag.shape
        (5,)
        >>> result.report().detectors.index[0]
        'fedlatent'
    """

    run: RunConfig
    present: Federation
    absent: tuple[SiteData, ...]
    folder: Path
    simulation: Simulation

    def __repr__(self) -> str:
        """Name, clients and epsilon."""
        count = f"{len(self.present.sites)} clients, {len(self.absent)} absent"
        return f"RunResult({self.run.name!r}: {count}, epsilon {self.epsilon})"

    @property
    def epsilon(self) -> float | None:
        """The highest epsilon that a client has spent; None without privacy."""
        spent = [one.epsilon for one in self.simulation.history if one.epsilon is not None]
        return max(spent, default=None)

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """A row for each phase: what was asked, seconds, answers, loss, epsilon, bytes."""
        import pandas as pd

        rows = [asdict(one) for one in self.simulation.history]
        return pd.DataFrame(rows).drop(columns="loss_spread").set_index("number")

    def export(
        self,
        out: str | Path,
        *,
        site: str | None = None,
        signing_key: str | Path | None = None,
        decoder: bool = False,
    ) -> EdgeModel:
        """Write a signed bundle, as a deployed run's would be, and load it.

        Args:
            out: the bundle.
            site: a client that took part, for the bundle of its own devices; by default the global
                bundle, for devices anywhere.
            signing_key: private key file; by default ``publisher.pem`` beside the bundle, made new.
            decoder: ship the decoder as well: the site's own, or one that clients shared.

        Raises:
            ConfigError: there is no such client, no decoder to ship, or a threshold flags nothing.
            BundleError: the graphs differ from torch.
        """
        target = Path(out)
        if site is None:
            contents, near = global_contents(self.simulation.result, _RUN_ID), self.present.sites[0]
        else:
            near = self._site(site)
            material = self.simulation.material(site)
            contents = site_contents(material, datasets(self.present)[site].records)
        key = target.parent / KEY if signing_key is None else Path(signing_key)
        records = np.asarray(near.test if len(near.test) else near.train)
        _, public = signed(target, replace(contents, decoder=decoder), key, records)
        return EdgeModel.load(target, [public])

    def report(self) -> Report:
        """The global bundle on all clients' test records, beside simple baselines."""
        return self._report

    @cached_property
    def _report(self) -> Report:
        model = self.export(self.folder / "report" / "global.fedlatent")
        return report_on(model, self.run, self.present, self.absent, name=self.run.name)

    def _site(self, name: str) -> SiteData:
        for one in self.present.sites:
            if one.name == name:
                return one
        names = ", ".join(one.name for one in self.present.sites[:10])
        raise ConfigError(
            f"Expected a client that took part, such as {names}, got {name!r}; correct the name.",
            field="site",
        )

    def _repr_html_(self) -> str:
        """The main facts, in a notebook."""
        last = self.simulation.history[-1]
        return facts(
            f"Run {self.run.name}",
            {
                "clients": f"{len(self.present.sites)} took part, {len(self.absent)} did not",
                "family": self.run.model.family,
                "epsilon": "none" if self.epsilon is None else f"{self.epsilon:.4g} for each",
                "phases": last.number,
                "sent up": f"{sum(one.bytes_up for one in self.simulation.history):,} bytes",
                "next": ".report(), .rounds, .export('model.fedlatent')",
            },
        )


def simulate(
    run: RunConfig | str | Path | Mapping[str, Any],
    federation: Federation,
    *,
    absent: int = 0,
    engine: Engine = "stacked",
    folder: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> RunResult:
    """Train a run over the clients of a federation, on this machine.

    The server, the privacy plan and the aggregation are those of a deployment. Noise is drawn from
    the run's seed, so that equal calls give equal results; it protects nobody.

    Args:
        run: a configuration, its TOML file, or tables of one, such as
            ``{"privacy": {"epsilon": 4}, "training": {"rounds": 5}}``: what they leave out suits
            the federation. A table without an epsilon has no privacy; a `Privacy` object has, by
            its defaults.
        federation: clients, as `read` gives them.
        absent: clients left out, to see how new ones fare.
        engine: "stacked" runs all clients as one tensor program; "nodes" runs real nodes with
            ledger, store and release log, one after the other.
        folder: receives what the run leaves; by default a temporary one that goes with the result.
        device: where "stacked" computes: cpu, cuda or mps.
        progress: show a bar.

    Returns:
        The result; `RunResult.export` makes bundles, `RunResult.report` rates them.

    Raises:
        ConfigError: the run is wrong, or does not fit the federation or the engine.
        QuorumLost: too few clients answered well.

    Examples:
        >>> import fedlatent as fl
        >>> clients = fl.read("patients.csv", client="hospital", label="disease")
        >>> result = fl.simulate({"privacy": {"epsilon": 4}}, clients, absent=1, progress=False)
        >>> len(result.present.sites), len(result.absent)
        (3, 1)
    """
    if not isinstance(federation, Federation):
        raise ConfigError(
            f"Expected clients, as fedlatent.read gives them, got a {type(federation).__name__}; "
            "read it first.",
            field="federation",
        )
    if engine not in get_args(Engine):
        raise ConfigError(
            f"Expected engine to be one of {', '.join(get_args(Engine))}, got {engine!r}; choose "
            "one.",
            field="engine",
        )
    present, away = leave_out(federation, absent)
    chosen = configured(run, present)
    place = Path(folder if folder is not None else tempfile.mkdtemp(prefix="fedlatent-"))
    with contextlib.ExitStack() as stack:
        if folder is None:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
        done = _simulated(chosen, present, place, engine, device, shown=progress)
        stack.pop_all()
    result = RunResult(run=chosen, present=present, absent=away, folder=place, simulation=done)
    if folder is None:
        weakref.finalize(result, shutil.rmtree, place, ignore_errors=True)
    return result


def _simulated(
    run: RunConfig,
    present: Federation,
    folder: Path,
    engine: Engine,
    device: str,
    *,
    shown: bool,
) -> Simulation:
    """Train, with a bar where it is to be shown."""
    with watched(shown=shown, name="simulation") as watch:
        return run_here(
            run,
            datasets(present),
            folder,
            run_id=_RUN_ID,
            engine=engine,
            device=device,
            watch=watch,
        )


def configured(run: RunConfig | str | Path | Mapping[str, Any], present: Federation) -> RunConfig:
    """The configuration that `simulate` makes of what it is given, with noise from the seed.

    Raises:
        ConfigError: it is wrong.
    """
    if isinstance(run, (str, Path)):
        run = RunConfig.load(Path(run))
    if isinstance(run, Mapping):
        run = _filled({key: _table(key, value) for key, value in run.items()}, present)
    if not isinstance(run, RunConfig):
        raise ConfigError(
            f"Expected a run, its file or tables of one, got a {type(run).__name__}; pass one.",
            field="run",
        )
    seeded = run.privacy.model_copy(update={"rng": "simulation"})
    return run.model_copy(update={"privacy": seeded})


def _table(key: str, value: object) -> object:
    if isinstance(value, BaseModel):
        told = value.model_dump(mode="json", exclude_unset=True)
        if isinstance(value, Privacy):  # whose defaults are private
            told |= {"mechanism": value.mechanism, "epsilon": value.epsilon}
        return told
    if key in ("privacy", "model", "federation") and not isinstance(value, Mapping):
        raise ConfigError(f"Expected a table for {key}, got {value!r}; pass a mapping.", field=key)
    if isinstance(value, Mapping):
        return {name: one for name, one in value.items() if one is not None}
    return value


def _filled(tables: Mapping[str, Any], present: Federation) -> RunConfig:
    """A run of these tables; what they leave out suits the clients."""
    privacy, model = tables.get("privacy", {}), tables.get("model", {})
    base = run_of(
        present,
        family=model.get("family"),
        options=model.get("options"),
        epsilon=None if privacy.get("mechanism") == "none" else privacy.get("epsilon"),
        seed=tables.get("seed", 0),
    ).model_dump(mode="json")
    for key, value in tables.items():
        below = base.get(key)
        base[key] = (
            {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
        )
    base["federation"] |= {"nodes": len(present.sites), "quorum": len(present.sites)} | tables.get(
        "federation", {}
    )
    return RunConfig.parse(base, "run")


def export(
    home: str | Path, out: str | Path | None = None, *, decoder: bool = False
) -> BundleReport:
    """Make a signed bundle of the latest finished run in the folder of a server or of a node.

    A server's gives the global bundle; a node's gives the bundle for that site's own devices,
    which holds exact statistics of its records.

    Args:
        home: folder of a server or node.
        out: the bundle; by default the next version in the home's ``bundles``.
        decoder: ship the decoder as well, for reconstructions.

    Returns:
        Path, size, parity with torch and the signed manifest.

    Raises:
        ConfigError: there is neither a server nor a node, or no run has finished.
        BundleError: the graphs differ from torch.

    Examples:
        >>> import fedlatent as fl
        >>> fl.export("nowhere")
        Traceback (most recent call last):
        ...
        fedlatent.shared.errors.ConfigError: Expected the folder of a server or node, got nowhere...
    """
    place, target = Path(home), None if out is None else Path(out)
    server, client = ServerHome(place), ClientHome(place)
    if client.config.exists():
        return export_site(client, None, target, decoder=decoder)
    if server.config.exists() or server.registry.exists():
        return export_global(server, None, target, decoder=decoder)
    raise ConfigError(
        f"Expected the folder of a server or node, got {place}; give the one that "
        "'fedlatent server init' or 'fedlatent client init' made."
    )
