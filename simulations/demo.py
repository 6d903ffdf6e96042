"""The whole loop on this machine: real server, real nodes over TLS, bundles, scores at the edge.

Nothing here is simulated but the patients: a SuperLink behind the gateway, one SuperNode and one
resident node process per site, each with its own home, keys, ledger and release log. Some sites
stay away, to show what the global bundle does for those who took no part.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.export import export_site
from fedlatent.client.home import ClientHome
from fedlatent.client.journal import read_journal
from fedlatent.server.export import export_global
from fedlatent.server.home import ServerHome
from fedlatent.server.watch import Report, watch_run
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.detection import baselines
from fedlatent.shared.errors import DataError, ServiceError
from fedlatent.shared.export.bundling import BundleReport
from fedlatent.shared.keys import SigningKey, VerifyKey
from fedlatent.simulations.deployed import running_federation
from fedlatent.simulations.study.evaluation import (
    QUESTIONS,
    Detector,
    Rating,
    baseline_detector,
    edge_detector,
    rate,
    rated,
    reconstruction_detector,
    train_alone,
)

_RUN_TIMEOUT_S = 1500.0


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """One participating site.

    Attributes:
        name: of the site.
        records: normal records it trained on.
        epsilon: spent on them, by its own ledger; None without privacy.
        bytes_left: everything that left, by its own release journal.
        releases: how many times something left.
    """

    name: str
    records: int
    epsilon: float | None
    bytes_left: int
    releases: int


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Attributes:
        seconds: from the first file to the last score.
        run: the configuration.
        sites: those that took part.
        ratings: AUROC by question and baseline.
        bundle: the global bundle.
        bundle_bytes: its size.
        parity: largest relative difference between ONNX and torch over all bundles.
        cold_start_s: of a fresh edge process, to the first score.
        peak_rss_mb: of that process.
        folder: everything the demo made.
        site_bundles: by site name.
    """

    seconds: float
    run: RunConfig
    sites: tuple[SiteReport, ...]
    ratings: dict[str, Rating]
    bundle: Path
    bundle_bytes: int
    parity: float
    cold_start_s: float
    peak_rss_mb: float
    folder: Path
    site_bundles: dict[str, Path]

    def to_json(self) -> dict[str, object]:
        """The result as one JSON object.

        AUROC is over all sites' records under one threshold, and as the mean of sites by
        themselves: of devices that each have a threshold of their own, the mean says more.
        """
        rating = {name: value.pooled for name, value in self.ratings.items()}
        return {
            "seconds": round(self.seconds, 1),
            "sites": [
                {
                    "name": site.name,
                    "records": site.records,
                    "epsilon": site.epsilon,
                    "bytes_left": site.bytes_left,
                }
                for site in self.sites
            ],
            "auroc": {
                "seen": rating["seen"],
                "absent": rating["absent"],
                "new10": rating["new10"],
                "local_mean": self.ratings["local"].site_mean,
                "pooled": rating["pooled"],
                "pca": rating["pca"],
            },
            "auroc_site_mean": {
                name: self.ratings[name].site_mean for name in ("seen", "absent", "new10")
            },
            "bundle_bytes": self.bundle_bytes,
            "edge": {"cold_start_s": self.cold_start_s, "peak_rss_mb": self.peak_rss_mb},
            "parity": self.parity,
            "folder": str(self.folder),
        }


def demo_run(federation: Federation, *, nodes: int, epsilon: float, rounds: int) -> RunConfig:
    """The run of the demo: 200 steps in ``rounds`` exchanges."""
    image = len(federation.schema.shape) > 1
    return RunConfig.parse(
        {
            "name": f"demo-{federation.name}".lower().replace(".", "-").replace("_", "-"),
            "data": federation.schema.to_dict(),
            "model": {"options": {"hidden": [64], "latent_dim": 8}},
            "privacy": {"epsilon": epsilon, "sample_rate": 0.2 if image else 0.1},
            "training": {
                "rounds": rounds,
                "steps_per_round": max(1, 200 // rounds),
                "learning_rate": 4e-3,
            },
            "federation": {"nodes": nodes, "quorum": max(1, nodes - 1)},
        },
        "demo",
    )


def run_demo(
    federation: Federation,
    absent: Federation,
    run: RunConfig,
    folder: Path,
    report: Report,
) -> DemoResult:
    """Run the whole loop.

    Args:
        federation: sites that take part, each as a node of its own.
        absent: sites that do not.
        run: what to train.
        folder: an empty folder for the homes of server and nodes.
        report: told about progress.

    Raises:
        FedlatentError: a part did not come up, or the run did not finish.
    """
    started = time.monotonic()
    server = ServerHome(folder / "server")
    homes = {site.name: ClientHome(folder / "nodes" / site.name) for site in federation.sites}
    ratings = _train(server, homes, federation, absent, run, report)
    report("bundles: export, parity with torch, signature", 0.0)
    bundle, site_bundles = _export(server, homes, report)
    report("scores at the edge", 0.0)
    key = SigningKey.load(server.signing_key).public
    ratings |= _questions(bundle, key, site_bundles, homes, federation, absent, run.seed)
    footprint = _edge_process(bundle.path, server, absent, folder)
    reports = [bundle, *site_bundles.values()]
    return DemoResult(
        seconds=time.monotonic() - started,
        run=run,
        sites=tuple(site_report(name, home) for name, home in homes.items()),
        ratings=ratings,
        bundle=bundle.path,
        bundle_bytes=bundle.size,
        parity=max(one.max_rel for made in reports for one in made.parity.values()),
        cold_start_s=footprint["seconds"],
        peak_rss_mb=footprint["peak_mb"],
        folder=folder,
        site_bundles={name: made.path for name, made in site_bundles.items()},
    )


def site_report(name: str, home: ClientHome) -> SiteReport:
    """What a node's own release journal says left the building."""
    lines = read_journal(home.release_journal).values
    sent = [line for line in lines if line.status == "ok"]
    if not sent:
        raise DataError(f"Expected releases in {home.release_journal}, got none.")
    return SiteReport(
        name=name,
        records=sent[-1].records or 0,
        epsilon=sent[-1].epsilon,
        bytes_left=sum(line.bytes for line in lines),
        releases=len(sent),
    )


def _train(
    server: ServerHome,
    homes: dict[str, ClientHome],
    federation: Federation,
    absent: Federation,
    run: RunConfig,
    report: Report,
) -> dict[str, Rating]:
    """Start everything, see the run to its end; meanwhile rate the baselines."""
    with running_federation(server, homes, federation, run, report) as service:
        submission = service.control.submit(run)
        with ThreadPoolExecutor(1) as background:  # the nodes are other processes
            ratings = background.submit(_baselines, federation, absent, run)
            watch_run(server, submission.run_id, report, _RUN_TIMEOUT_S)
            return ratings.result()


def _export(
    server: ServerHome, homes: dict[str, ClientHome], report: Report
) -> tuple[BundleReport, dict[str, BundleReport]]:
    bundle = export_global(server)
    made = {}
    for index, (name, home) in enumerate(homes.items()):
        report("bundles", (index + 1) / (len(homes) + 1))
        made[name] = export_site(home)
    return bundle, made


def _questions(
    bundle: BundleReport,
    key: VerifyKey,
    site_bundles: dict[str, BundleReport],
    homes: dict[str, ClientHome],
    federation: Federation,
    absent: Federation,
    seed: int,
) -> dict[str, Rating]:
    """The three questions, answered by the bundles themselves."""
    model = EdgeModel.load(bundle.path, [key])

    def device(normals: NDArray[np.generic] | None) -> Detector:
        """The score beside its threshold: some devices keep the absolute score, others do not."""
        here = model if normals is None else model.recentre(normals)
        return lambda rows: here.score(rows).score - here.threshold

    def own(site: SiteData) -> Detector:
        home = homes[site.name]
        public = SigningKey.load(home.signing_key).public
        return edge_detector(EdgeModel.load(site_bundles[site.name].path, [public]))

    return rated(
        QUESTIONS,
        seen=lambda: [(site, own(site)) for site in federation.sites],
        absent=absent.sites,
        detector=device,
        seed=seed,
    )


def _edge_process(
    bundle: Path, server: ServerHome, absent: Federation, folder: Path
) -> dict[str, float]:
    """Score a file in a fresh process, as a device would, and take its own figures."""
    records = folder / "device.npz"
    np.savez_compressed(records, X=absent.sites[0].test)
    key = folder / "publisher.pub"
    key.write_bytes(SigningKey.load(server.signing_key).public.to_pem())
    command = [
        sys.executable,
        "-m",
        "fedlatent.client.edge.main",
        "score",
        str(bundle),
        str(records),
    ]
    done = subprocess.run(
        [*command, "--key", str(key), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServiceError(f"Expected a score at the edge, got: {done.stderr.strip()[-300:]}")
    figures = json.loads(done.stdout)["process"]
    return {"seconds": figures["first_score_s"], "peak_mb": figures["peak_rss_mb"]}


def _baselines(federation: Federation, absent: Federation, run: RunConfig) -> dict[str, Rating]:
    """Local training at the same epsilon, pooled training without privacy, and PCA."""
    schema, sites = federation.schema, federation.sites
    local = [
        (site, reconstruction_detector(train_alone(run, schema.preprocess(site.train), i), schema))
        for i, site in enumerate(sites)
    ]
    rows = [site.train for site in sites]
    plain = run.model_copy(update={"privacy": run.privacy.model_copy(update={"mechanism": "none"})})
    union = schema.preprocess(np.concatenate(rows))
    pooled_model = reconstruction_detector(train_alone(plain, union, len(sites)), schema)
    pooled_pca = baseline_detector(baselines.pca, schema, rows)
    mahalanobis = baseline_detector(baselines.mahalanobis, schema, rows)
    return {
        "local": rate(local),
        "pooled": rate([(site, pooled_model) for site in absent.sites]),
        "pooled_seen": rate([(site, pooled_model) for site in sites]),
        "pca": rate([(site, pooled_pca) for site in absent.sites]),
        "pca_seen": rate([(site, pooled_pca) for site in sites]),
        "mahalanobis": rate([(site, mahalanobis) for site in absent.sites]),
        "mahalanobis_seen": rate([(site, mahalanobis) for site in sites]),
    }
