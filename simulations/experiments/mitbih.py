"""Heart beats of 22 real patients as 22 clients: ventricular beats against normal ones.

For each seed: 70 % of a patient's normal beats train. All 22 patients train together for the
question about seen clients; 7 drawn patients stay away for the questions about absent and new
ones. Everything goes through the server's round loop and the nodes' ledgers and release doors
(``fedlatent.simulations.federation``); noise is seeded.

    python -m fedlatent.simulations.experiments.mitbih run --out bench-out/mitbih
    python -m fedlatent.simulations.experiments.mitbih table --out bench-out/mitbih
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.server.results import RunResult
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData, mitbih
from fedlatent.shared.detection import baselines
from fedlatent.shared.files import read_json, write_json
from fedlatent.shared.models import build_model, encoder_state, load_state
from fedlatent.shared.privacy.accounting import GaussianEvent, calibrate
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.simulations.evaluation import (
    NEW_COUNTS,
    Detector,
    Rating,
    baseline_detector,
    global_detector,
    latent_detector,
    normals_of,
    rate,
    reconstruction_detector,
    site_detector,
    three_questions,
    train_alone,
)
from fedlatent.simulations.federation import datasets, simulate

EPSILONS: tuple[float | None, ...] = (2.0, 4.0, 8.0, None)
ABSENT = 7
SPLIT_OFFSET = 5  # seed 0 holds out the seven patients of the first published figures
KINDS = ("V", "S", "F")

#: DP Mahalanobis: low cosine frequencies kept, and clipping radius of a beat in mV.
DP_FEATURES, DP_RADIUS = 16, 9.0

Ratings = dict[str, Rating]


def mitbih_run(
    federation: Federation,
    *,
    epsilon: float | None,
    seed: int,
    sharing: str = "encoder",
    rounds: int = 10,
    steps: int = 20,
) -> RunConfig:
    """The run of this experiment; ``epsilon`` None trains without privacy."""
    privacy: dict[str, object] = {"rng": "simulation"}
    privacy |= {"mechanism": "none"} if epsilon is None else {"epsilon": epsilon}
    return RunConfig.parse(
        {
            "name": "mitbih",
            "seed": seed,
            "sharing": sharing,
            "data": federation.schema.to_dict(),
            "model": {"options": {"hidden": [64], "latent_dim": 8}},
            "privacy": privacy,
            "training": {"rounds": rounds, "steps_per_round": steps, "learning_rate": 4e-3},
            "federation": {"nodes": len(federation.sites), "quorum": len(federation.sites)},
        },
        "mitbih experiment",
    )


def private_cell(federation: Federation, epsilon: float | None, seed: int) -> Ratings:
    """Our three questions at one epsilon and seed, with local-only and full sharing beside."""
    run = mitbih_run(federation, epsilon=epsilon, seed=seed)
    present, absent = federation.hold_out(ABSENT, seed + SPLIT_OFFSET)
    ratings: Ratings = {}
    with tempfile.TemporaryDirectory() as folder:
        everyone = simulate(run, datasets(federation), Path(folder) / "all")
        seen = [(s, site_detector(everyone.material(s.name), s)) for s in federation.sites]
        smaller = mitbih_run(present, epsilon=epsilon, seed=seed)
        result = simulate(smaller, datasets(present), Path(folder) / "present").result
        ratings |= three_questions(
            seen=seen,
            absent=absent,
            as_it_comes=global_detector(result),
            recentred=lambda normals: global_detector(result, normals),
            seed=seed,
        )
        ratings |= {f"seen_{kind}": rate(seen, kind) for kind in KINDS[1:]}
        whole = mitbih_run(federation, epsilon=epsilon, seed=seed, sharing="full")
        full = simulate(whole, datasets(federation), Path(folder) / "full").result
    shared = whole_model_detector(full)
    ratings["full_seen"] = rate([(site, shared) for site in federation.sites])
    ratings["local_seen"] = rate(list(_alone(federation, run)))
    if epsilon is not None:
        ratings |= _dp_mahalanobis(present, absent, epsilon, seed)
    return ratings


def whole_model_detector(result: RunResult) -> Detector:
    """Reconstruction error of the one model that everybody shares."""
    run = result.config
    model = build_model(run)
    load_state(model, {key: torch.from_numpy(value) for key, value in result.arrays.items()})
    return reconstruction_detector(model, run.data)


def one_split_cell(federation: Federation, seed: int) -> Ratings:
    """Absent and new patients of the first published split at epsilon 4, with another seed."""
    present, absent = federation.hold_out(ABSENT, SPLIT_OFFSET)
    run = mitbih_run(present, epsilon=4.0, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(run, datasets(present), Path(folder)).result
    return {
        "absent": rate([(site, global_detector(result)) for site in absent.sites]),
        **_new("ours", absent, 0, lambda normals: global_detector(result, normals)),
    }


def plain_cell(federation: Federation, seed: int) -> Ratings:
    """Baselines that know no privacy, and an encoder that was never trained."""
    present, absent = federation.hold_out(ABSENT, seed + SPLIT_OFFSET)
    schema = federation.schema
    run = mitbih_run(federation, epsilon=None, seed=seed)
    ratings: Ratings = {}
    for name, sites in (("seen", federation.sites), ("absent", present.sites)):
        rows = [site.train for site in sites]
        rated = federation.sites if name == "seen" else absent.sites
        union = schema.preprocess(np.concatenate(rows))
        pooled = reconstruction_detector(train_alone(run, union, key=0), schema)
        for label, detector in (
            ("pooled_vae", pooled),
            ("pca", baseline_detector(baselines.pca, schema, rows)),
            ("mahalanobis", baseline_detector(baselines.mahalanobis, schema, rows)),
        ):
            ratings[f"{label}_{name}"] = rate([(site, detector) for site in rated])
    for label, fit in (("pca", baselines.pca), ("mahalanobis", baselines.mahalanobis)):
        own = [(s, baseline_detector(fit, schema, [s.train])) for s in federation.sites]
        ratings[f"{label}_own"] = rate(own)
        ratings |= _new(
            f"{label}_own",
            absent,
            seed,
            lambda rows, fit=fit: baseline_detector(fit, schema, [rows]),  # type: ignore[misc]
        )
    untrained = _untrained(run, present)
    ratings["untrained_absent"] = rate([(site, untrained(None)) for site in absent.sites])
    return ratings | _new("untrained", absent, seed, untrained)


def _untrained(
    run: RunConfig, present: Federation
) -> Callable[[NDArray[np.generic] | None], Detector]:
    """The same density on the first weights, without noise: what training has to beat."""
    model = build_model(run)
    weights = {key: value.numpy() for key, value in encoder_state(model).items()}
    rows = [site.train for site in present.sites]
    return lambda normals: latent_detector(run, weights, rows, normals)


def _alone(federation: Federation, run: RunConfig) -> Iterator[tuple[SiteData, Detector]]:
    schema = federation.schema
    for key, site in enumerate(federation.sites):
        model = train_alone(run, schema.preprocess(site.train), key)
        yield site, reconstruction_detector(model, schema)


def _new(
    label: str,
    absent: Federation,
    seed: int,
    make: Callable[[NDArray[np.generic]], Detector],
) -> Ratings:
    return {
        f"{label}_new{count}": rate(
            [(site, make(normals_of(site, count, seed))) for site in absent.sites]
        )
        for count in NEW_COUNTS
    }


def _dp_mahalanobis(present: Federation, absent: Federation, epsilon: float, seed: int) -> Ratings:
    """One private moments release per patient on scaled beats, with the whole budget."""
    schema = present.schema
    sigma = calibrate(epsilon, 1e-5, lambda s: [GaussianEvent(noise_multiplier=s)])
    detector = baselines.dp_mahalanobis(
        [schema.preprocess(site.train) for site in present.sites],
        features=DP_FEATURES,
        radius=DP_RADIUS,
        noise_multiplier=sigma,
        noise=SimulationNoise(seed, 99),
    )

    def as_it_comes(rows: NDArray[np.generic]) -> NDArray[np.float64]:
        return detector(schema.preprocess(rows))

    def recentred(normals: NDArray[np.generic]) -> Detector:
        own = detector.recentre(schema.preprocess(normals))
        return lambda rows: own(schema.preprocess(rows))

    absent_rating = rate([(site, as_it_comes) for site in absent.sites])
    return {"dp_mahalanobis_absent": absent_rating} | _new(
        "dp_mahalanobis", absent, seed, recentred
    )


def cells(seeds: int) -> list[tuple[str, float | None, int]]:
    """Name, epsilon and seed of every cell; the name is its file."""
    made: list[tuple[str, float | None, int]] = [(f"plain-{s}", None, s) for s in range(seeds)]
    made += [(f"split-{s}", 4.0, s) for s in range(seeds)]
    for seed in range(seeds):
        for epsilon in EPSILONS:
            made.append((f"eps-{epsilon or 'none'}-{seed}", epsilon, seed))
    return made


def run_cells(out: Path, data: Path, seeds: int, part: int, parts: int) -> None:
    """Compute the cells that ``out`` lacks; ``part`` of ``parts`` processes takes every n-th."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name, epsilon, seed in cells(seeds)[part::parts]:
        path = out / f"{name}.json"
        if path.exists():
            continue
        if name.startswith("plain"):
            ratings = plain_cell(mitbih(data, seed), seed)
        elif name.startswith("split"):
            ratings = one_split_cell(mitbih(data, 0), seed)
        else:
            ratings = private_cell(mitbih(data, seed), epsilon, seed)
        write_json(path, {key: asdict(value) for key, value in ratings.items()})
        print(name, {key: round(value.pooled, 4) for key, value in ratings.items()}, flush=True)


ROWS: Mapping[str, Sequence[str]] = {
    "seen": (
        "seen",
        "full_seen",
        "local_seen",
        "pooled_vae_seen",
        "pca_seen",
        "mahalanobis_seen",
        "pca_own",
        "mahalanobis_own",
        "seen_S",
        "seen_F",
    ),
    "absent": (
        "absent",
        "untrained_absent",
        "dp_mahalanobis_absent",
        "pooled_vae_absent",
        "pca_absent",
        "mahalanobis_absent",
    ),
    **{
        f"new{n}": (
            f"new{n}",
            f"untrained_new{n}",
            f"dp_mahalanobis_new{n}",
            f"pca_own_new{n}",
            f"mahalanobis_own_new{n}",
        )
        for n in NEW_COUNTS
    },
}


def table(out: Path, seeds: int) -> str:
    """Mean and deviation over seeds as a Markdown table; absent cells are left blank."""
    columns = [f"eps-{epsilon or 'none'}" for epsilon in EPSILONS] + ["plain"]
    found = {
        (column, seed): read_json(out / f"{column}-{seed}.json")
        for column in columns
        for seed in range(seeds)
        if (out / f"{column}-{seed}.json").exists()
    }
    lines = ["| question | detector | eps 2 | eps 4 | eps 8 | no noise | not private |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for question, names in ROWS.items():
        for name in names:
            cell = [_cell(found, column, name, seeds) for column in columns]
            lines.append(f"| {question} | {name} | {' | '.join(cell)} |")
    split = [
        ratings
        for seed in range(seeds)
        if (out / f"split-{seed}.json").exists()
        and isinstance(ratings := read_json(out / f"split-{seed}.json"), dict)
    ]
    for name in split[0] if split else ():
        values = [ratings[name]["pooled"] for ratings in split]
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"\nfirst split, epsilon 4, {name}: {np.mean(values):.3f} ({each})")
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[tuple[str, int], object], column: str, name: str, seeds: int) -> str:
    values = []
    for seed in range(seeds):
        ratings = found.get((column, seed))
        if isinstance(ratings, dict) and name in ratings:
            values.append(ratings[name]["pooled"])
    if not values:
        return ""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("bench-out/mitbih"))
    default = Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder of mitbih_beats.npz")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", type=int, default=0, help="this process of --parts")
    parser.add_argument("--parts", type=int, default=1)
    given = parser.parse_args()
    if given.command == "run":
        run_cells(given.out, given.data, given.seeds, given.part, given.parts)
    else:
        print(table(given.out, given.seeds))


if __name__ == "__main__":
    main()
