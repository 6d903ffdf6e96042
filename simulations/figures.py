"""The picture of the demo: records, reconstructions and scores."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.export import site_model
from fedlatent.client.home import ClientHome
from fedlatent.client.store import SiteMaterial, Store
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.keys import SigningKey
from fedlatent.simulations.study.evaluation import normals_of

if TYPE_CHECKING:
    from fedlatent.simulations.demo import DemoResult

NORMAL, ANOMALY = "#1f6f8b", "#d1495b"
_EXAMPLES = 3


def demo_figure(result: "DemoResult", present: Federation, absent: Federation, path: Path) -> Path:
    """Draw normal and anomalous records with reconstructions, and score histograms; PNG.

    The upper rows are records of one participating site, with the reconstruction of its own
    decoder and the score of its bundle. The lower row shows scores of a participating site, of an
    absent one, and of the same after re-centring on ten normal records.
    """
    site = max(present.sites, key=lambda one: int(one.test_label.sum()))
    away = max(absent.sites, key=lambda one: int(one.test_label.sum()))
    home = ClientHome(result.folder / "nodes" / site.name)
    run_id = Store(home.store).site_runs()[-1]
    material = Store(home.store).load_site(run_id)
    own = EdgeModel.load(result.site_bundles[site.name], [SigningKey.load(home.signing_key).public])
    signer = SigningKey.load(result.folder / "server" / "keys" / "signing.pem").public
    everywhere = EdgeModel.load(result.bundle, [signer])
    recentred = everywhere.recentre(normals_of(away, 10, result.run.seed))
    how = "re-centred on" if recentred.doubt is None else "not re-centred, by"
    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    grid = figure.add_gridspec(3, _EXAMPLES, height_ratios=[1, 1, 1.15])
    _records(figure, grid, present, site, material, own)
    panels = (
        (f"{site.name}: took part, site bundle", own, site),
        (f"{away.name}: took no part, global bundle", everywhere, away),
        (f"{away.name}: {how} 10 normals", recentred, away),
    )
    for column, (title, model, rows) in enumerate(panels):
        _scores(figure.add_subplot(grid[2, column]), title, model, rows)
    kind = "synthetic" if present.synthetic else "real"
    figure.suptitle(
        f"{present.name} ({kind}): encoder trained over {len(present.sites)} sites, epsilon "
        f"{result.run.privacy.epsilon:g} per record at delta {result.run.privacy.delta:g}",
        fontsize=13,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _records(
    figure: Figure,
    grid: GridSpec,
    federation: Federation,
    site: SiteData,
    material: SiteMaterial,
    bundle: EdgeModel,
) -> None:
    x = federation.schema.preprocess(site.test)
    model = site_model(material)
    with torch.no_grad():
        again = model.reconstruct(model.encode(torch.from_numpy(x))[0]).numpy()
    table = bundle.score(site.test)
    for row, label in enumerate((0, 1)):
        order = np.argsort(table.score[site.test_label == label])
        index = np.flatnonzero(site.test_label == label)[order]
        chosen = index[np.linspace(0, len(index) - 1, _EXAMPLES + 2).astype(int)[1:-1]]
        for column, i in enumerate(chosen):
            axes = figure.add_subplot(grid[row, column])
            _record(axes, x[i], again[i], ANOMALY if label else NORMAL)
            flag = "flagged" if table.flag[i] else "not flagged"
            word = "anomaly" if label else "normal"
            axes.set_title(f"{word}, score {table.score[i]:.1f}, {flag}", fontsize=10)
            if column == 0 and x.ndim == 2:
                axes.set_ylabel(federation.schema.unit)
            if row == column == 0 and x.ndim == 2:
                axes.legend(fontsize=8, frameon=False)


def _record(
    axes: Axes, record: NDArray[np.float32], again: NDArray[np.float32], color: str
) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if record.ndim == 1:
        axes.plot(record, color=color, label="record")
        axes.plot(again, color="black", linewidth=1, linestyle="--", label="reconstruction")
        return
    pair = np.concatenate([record[0], np.full((record.shape[1], 1), np.nan), again[0]], axis=1)
    axes.imshow(pair, cmap="gray_r")
    axes.set_xticks([record.shape[2] // 2, record.shape[2] * 3 // 2 + 1], ["record", "again"])
    axes.set_yticks([])


def _scores(axes: Axes, title: str, model: EdgeModel, site: SiteData) -> None:
    scores = model.score(site.test).score
    low, high = np.percentile(scores, [0, 99.5])
    positive = low > 0
    low = max(low, 1e-3) if positive else low
    edges = np.geomspace(low, max(high, model.threshold * 1.5), 40) if positive else None
    bins = edges if edges is not None else np.linspace(low, max(high, model.threshold * 1.5), 40)
    for label, color, word in ((0, NORMAL, "normal"), (1, ANOMALY, "anomaly")):
        shown = np.clip(scores[site.test_label == label], bins[0], bins[-1])
        axes.hist(shown, bins=list(bins), color=color, alpha=0.7, label=word)
    if positive:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(model.threshold, color="black", linewidth=1, linestyle=":", label="threshold")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
