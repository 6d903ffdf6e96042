"""Molecules: what a VAE over the tokens of a grammar draws, and how far its latents can be steered.

Trained on 120,000 molecules of MOSES. Of 10,000 draws: the shares that are valid (by the grammar
all rows that name an atom, so it measures little here), unique and not among the training
molecules; the Frechet ChemNet distance to the 10,000 test molecules (Preuer et al., 2018), beside
that of as many training molecules, for the distance of finite samples is not 0; and internal
diversity, 1 less the mean Tanimoto similarity. Beside them the same figures for uniform tokens of
the public alphabet and for pairs of tokens as frequent as in the training molecules (no privacy
there). Literature, with 1,584,663 training molecules and 30,000 draws: the VAE of
MOSES (Polykovskiy et al., 2020).

A Gaussian process from latents to a property leads draws uphill in latent space, within a radius;
the property of the molecules that come out is computed by RDKit, never by the process. It is
fitted to latents of training molecules, which costs privacy that is not counted.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fcd_torch import FCD
from numpy.typing import NDArray
from rdkit import Chem, DataStructs
from rdkit.Chem import QED, Draw, rdFingerprintGenerator, rdMolDescriptors
from rdkit.rdBase import BlockLogs
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import cross_val_predict

from fedlatent.shared.data.catalog import paths
from fedlatent.shared.data.selfies_tokens import STOP, VOCABULARY, to_records, to_smiles
from fedlatent.shared.models.molecule import MoleculeVAE
from fedlatent.simulations.zoo.training import Watch, fit, run_for

#: Of 30,000 draws of the VAE of MOSES (Polykovskiy et al., 2020, tables 2 and 3).
REPORTED = {"valid": 0.977, "unique at 10k": 0.998, "novel": 0.695, "FCD": 0.099}
LENGTH = 50  # tokens of a record; one molecule of the file has more

_PROPERTIES: dict[str, Callable[[Any], float]] = {
    "QED": QED.qed,
    "logP": lambda molecule: rdMolDescriptors.CalcCrippenDescriptors(molecule)[0],
}
_FITTED = 1_000  # latents that a Gaussian process is fitted to, and draws that it leads uphill
_RADIUS = 0.5  # of the search, as a share of the radius sqrt(k) on which latents lie
_UPHILL = 40  # steps of a search
_TOP = 10
_SHOWN = 24
_TOGETHER = 500  # molecules of one pass


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Train, draw, compare, and search.

    Args:
        data: folder of the data sets.
        epsilon: of the training, or None.
        seed: of weights, samples, noise and draws.
        quick: few molecules and steps.
        watch: told about the progress.
    """
    count, drawn = (150, 50) if quick else (120_000, 10_000)
    table = pd.read_csv(*paths(data, "moses"))
    texts = {name: table["smiles"][table["split"] == name].tolist() for name in ("train", "test")}
    texts = {"train": texts["train"][:count], "test": texts["test"][:drawn]}
    records, kept, _ = to_records(texts["train"], LENGTH)
    test, _, _ = to_records(texts["test"], LENGTH)
    watch(f"{len(records)} of {count} training molecules fit the alphabet and {LENGTH} tokens")
    model = train(records, epsilon=epsilon, seed=seed, quick=quick, watch=watch)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), BlockLogs():
        samples = to_smiles(_drawn(model, drawn, generator))
        rng = np.random.default_rng(seed)
        compare = {
            "model": samples,
            "pairs of tokens": to_smiles(_pairs(records, drawn, rng)),
            "uniform tokens": to_smiles(_uniform(records, drawn, rng)),
            "training molecules": rng.permutation(texts["train"])[:drawn].tolist(),
        }
        judge = _Judge(texts["train"], texts["test"])
        figures: dict[str, Any] = {
            "left out of training": count - len(kept),
            "test": _test_figures(model, test[:2000], generator),
            "draws": {name: judge.of(smiles) for name, smiles in compare.items()},
            "reported, 30k draws": REPORTED,
            "search": {
                name: search(model, records, name, generator, count=80 if quick else _FITTED)
                for name in _PROPERTIES
            },
            "solubility": solubility(model, data, quick=quick),
        }
    figures["picture"] = samples[:_SHOWN]
    return figures


def train(
    records: NDArray[np.float32],
    *,
    epsilon: float | None,
    seed: int,
    quick: bool,
    watch: Watch,
) -> MoleculeVAE:
    """The model of the experiment, trained on ``records`` [N, T]."""
    options: dict[str, object] = {"embedding": 32, "channels": [64, 128], "latent_dim": 48}
    training: dict[str, object] = {"beta": 0.1, "beta_warmup": 0.3, "schedule": "cosine"}
    if epsilon is None:
        options["hidden"] = 192
        batch = 64
        training |= {"rounds": 40, "steps_per_round": 150, "learning_rate": 5e-3, "ema": 0.5}
    else:
        options |= {"embedding": 16, "channels": [32, 32], "hidden": 96, "latent_dim": 16}
        batch = 2048
        training |= {"rounds": 10, "steps_per_round": 10, "learning_rate": 4e-3, "ema": 0.6}
    if quick:
        options |= {"embedding": 4, "channels": [4], "hidden": 8, "latent_dim": 4}
        training |= {"rounds": 2, "steps_per_round": 2}
        batch = 32
    run = run_for(
        "molecule",
        options,
        (LENGTH,),
        training=training,
        epsilon=epsilon,
        sample_rate=min(batch / len(records), 1.0),
        seed=seed,
        bounds=(0.0, VOCABULARY - 1.0),
    )
    model = fit(run, records, watch=watch)
    if not isinstance(model, MoleculeVAE):
        raise TypeError(f"Expected a MoleculeVAE, got {type(model).__name__}.")
    return model


def search(
    model: MoleculeVAE,
    records: NDArray[np.float32],
    name: str,
    generator: torch.Generator,
    count: int = _FITTED,
) -> dict[str, float]:
    """Lead ``count`` latents of the prior uphill and compare the molecules before and after.

    Args:
        model: trained.
        records: of molecules whose property is known, [N, T].
        name: of the property: "QED" or "logP".
        generator: draws the latents; nothing else is random.
        count: of the searches, and of the molecules that the process is fitted to.

    Returns:
        Mean and mean of the best ten of the property, of the draws before and after; the same of
        the known molecules; and the correlation of the process's held-out predictions.
    """
    known = records[:count]
    values, latents = _values(to_smiles(known), name), _latents(model, known)
    process, held_out = _fitted(latents, values)
    starts = torch.randn(count, model.latent_dim, generator=generator).numpy()
    ends = uphill(process, latents, starts, _RADIUS * model.latent_dim**0.5)
    before, after = (_values(_written(model, points), name) for points in (starts, ends))
    return {
        "correlation, held out": float(np.corrcoef(held_out, values)[0, 1]),
        "known, mean": float(values.mean()),
        "known, best ten": _best(values),
        "draws, mean": float(before.mean()),
        "draws, best ten": _best(before),
        "led uphill, mean": float(after.mean()),
        "led uphill, best ten": _best(after),
    }


def uphill(
    process: GaussianProcessRegressor,
    known: NDArray[np.float64],
    starts: NDArray[np.float32],
    radius: float,
) -> NDArray[np.float64]:
    """Ascend the process's mean from each start [N, k], at most ``radius`` away from it."""
    scale = process.kernel_.k1.k2.length_scale
    weights = process.kernel_.k1.k1.constant_value * process.alpha_
    points = starts.astype(np.float64)
    for _ in range(_UPHILL):
        square = ((points[:, None, :] - known) ** 2).sum(2)
        pull = weights * np.exp(-0.5 * square / scale**2)
        slope = pull @ known - pull.sum(1, keepdims=True) * points
        norm = np.linalg.norm(slope, axis=1, keepdims=True)
        points = points + 0.1 * radius * slope / np.maximum(norm, 1e-12)
        moved = points - starts
        far = np.linalg.norm(moved, axis=1, keepdims=True) / radius
        points = starts + moved / np.maximum(far, 1.0)
    return points


def solubility(model: MoleculeVAE, data: Path, *, quick: bool) -> dict[str, float]:
    """Held-out error of measured solubility in log10(mol/l) from latents (Delaney, 2004)."""
    table = pd.read_csv(*paths(data, "esol"))
    records, kept, _ = to_records(table["smiles"][: 80 if quick else None].tolist(), LENGTH)
    values = table["logS"].to_numpy(dtype=np.float64)[kept]
    order = np.random.default_rng(0).permutation(len(kept))
    values = values[order]
    error = _fitted(_latents(model, records[order]), values)[1] - values
    return {
        "molecules": len(kept),
        "RMSE": float(np.sqrt((error**2).mean())),
        "RMSE of the mean": float(values.std()),
    }


def picture(found: Sequence[str]) -> bytes | None:
    """A PNG of drawn molecules."""
    with BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in found if text]
    if not molecules:
        return None
    image = Draw.MolsToGridImage(molecules, molsPerRow=6, subImgSize=(220, 180), returnPNG=True)  # type: ignore[no-untyped-call]
    return bytes(image)


class _Judge:
    """Figures of molecules against fixed training and test molecules."""

    def __init__(self, train: Sequence[str], test: Sequence[str]) -> None:
        self._train = {_canonical(text) for text in train}
        self._distance = FCD(device="cpu", n_jobs=1, batch_size=128)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fcd_torch calls numpy by old names
            self._test = self._distance.precalc(list(test))

    def of(self, smiles: Sequence[str]) -> dict[str, float]:
        """Shares, distance and diversity of canonical SMILES; empty ones are not valid."""
        valid = [text for text in smiles if text]
        distinct = set(valid)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same, and of few molecules a singular covariance
            distance = float(self._distance(gen=valid, pref=self._test))
        return {
            "valid": len(valid) / max(len(smiles), 1),
            "unique": len(distinct) / max(len(valid), 1),
            "novel": len(distinct - self._train) / max(len(distinct), 1),
            "FCD": distance,
            "diversity": diversity(valid[:1000]),
            "QED": float(_values(valid[:1000], "QED").mean()),
        }


def diversity(smiles: Sequence[str]) -> float:
    """1 less the mean Tanimoto similarity of all ordered pairs (MOSES's IntDiv with p = 1)."""
    maker = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    prints = [maker.GetFingerprint(Chem.MolFromSmiles(text)) for text in smiles]
    rows = [DataStructs.BulkTanimotoSimilarity(one, prints) for one in prints]
    return 1.0 - float(np.mean(rows))


def _test_figures(
    model: MoleculeVAE, test: NDArray[np.float32], generator: torch.Generator
) -> dict[str, float]:
    """Terms of test molecules in nats, and the share that comes back whole from its latent."""
    parts = []
    for chunk in torch.split(torch.from_numpy(test), _TOGETHER):
        terms = model(chunk, torch.randn(len(chunk), model.latent_dim, generator=generator))
        same = (model.reconstruct(model.encode(chunk)[0]) == chunk).all(1).to(terms.rate)
        parts.append(torch.stack([terms.distortion, terms.rate, same], 1))
    distortion, rate, same = torch.cat(parts).double().mean(0).tolist()
    return {
        "distortion, nats": distortion,
        "rate, nats": rate,
        "distortion, nats a token": distortion / float(((test != STOP).sum(1) + 1).mean()),
        "reconstructed": same,
    }


def _drawn(model: MoleculeVAE, count: int, generator: torch.Generator) -> NDArray[np.float32]:
    sizes = [min(_TOGETHER, count - start) for start in range(0, count, _TOGETHER)]
    return torch.cat([model.draw(size, generator) for size in sizes]).numpy()


def _written(model: MoleculeVAE, latents: NDArray[Any]) -> list[str]:
    """SMILES of the likeliest tokens."""
    z = torch.from_numpy(latents.astype(np.float32))
    return to_smiles(
        torch.cat([model.reconstruct(part) for part in torch.split(z, _TOGETHER)]).numpy()
    )


def _latents(model: MoleculeVAE, records: NDArray[np.float32]) -> NDArray[np.float64]:
    parts = torch.split(torch.from_numpy(records), _TOGETHER)
    return torch.cat([model.encode(part)[0] for part in parts]).double().numpy()


def _fitted(
    latents: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[GaussianProcessRegressor, NDArray[np.float64]]:
    """A process of values [N] over latents [N, k], and its predictions [N] of held-out quarters.

    The kernel is that of all values.
    """
    noise = WhiteKernel(0.5, (1e-4, 10.0))
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(8.0, (0.5, 200.0)) + noise
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # A value at its bound is what latents without the property lead to.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(latents, values)
    again = GaussianProcessRegressor(process.kernel_, optimizer=None, normalize_y=True)
    return process, cross_val_predict(again, latents, values, cv=4)


def _values(smiles: Sequence[str], name: str) -> NDArray[np.float64]:
    """The property of each molecule; of those without an atom there is none."""
    molecules = [Chem.MolFromSmiles(text) for text in smiles if text]
    return np.array([_PROPERTIES[name](molecule) for molecule in molecules], dtype=np.float64)


def _best(values: NDArray[np.float64]) -> float:
    return float(np.sort(values)[-_TOP:].mean())


def _canonical(text: str) -> str:
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(text), isomericSmiles=False))


def _uniform(
    records: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Uniform tokens, as many as training molecules have."""
    found = rng.integers(1, VOCABULARY, (count, LENGTH))
    lengths = (records[rng.integers(len(records), size=count)] != STOP).sum(1)
    return np.where(np.arange(LENGTH) < lengths[:, None], found, STOP).astype(np.float32)


def _pairs(
    records: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Each token drawn given the one before, as often as in the training molecules."""
    tokens = np.pad(records.astype(np.int64), ((0, 0), (1, 0)))
    pairs = np.bincount(
        (tokens[:, :-1] * VOCABULARY + tokens[:, 1:]).ravel(), minlength=VOCABULARY**2
    ).reshape(VOCABULARY, VOCABULARY)
    first = np.bincount(tokens[:, 1], minlength=VOCABULARY)
    pairs[STOP] = 0
    pairs[STOP, STOP] = 1
    edges = np.cumsum(pairs / np.maximum(pairs.sum(1, keepdims=True), 1), 1)
    found = np.zeros((count, LENGTH), dtype=np.int64)
    found[:, 0] = rng.choice(VOCABULARY, size=count, p=first / first.sum())
    for step in range(1, LENGTH):
        later = (rng.random((count, 1)) > edges[found[:, step - 1]]).sum(1)
        found[:, step] = np.minimum(later, VOCABULARY - 1)
    return found.astype(np.float32)
