"""``verify``, ``info``, ``calibrate``, ``score`` and ``encode``."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlatent.client.edge.commands.common import (
    Commands,
    add_accept,
    add_columns,
    add_dialect,
    add_json,
    add_map,
    add_model_options,
    confirmation,
    dialect_of,
    load_model,
    names_of,
    print_json,
    print_table,
    say_doubt,
    say_extra,
)

if TYPE_CHECKING:
    import numpy as np

    from fedlatent.client.edge.reader import Found
    from fedlatent.client.edge.runtime import EdgeModel, ScoreTable
    from fedlatent.client.edge.windows import Rows

_CHUNK = 512
_SHOWN = 10
_TOLD = 5


def register(commands: Commands) -> None:
    """Add ``verify``, ``info``, ``calibrate``, ``score`` and ``encode`` to the command line."""
    _register_verify(commands)
    parser = commands.add(
        "info",
        "Show what a bundle is: model, privacy, schema, thresholds, size.",
        _info,
        ["info hearts-1.fedlatent --key publisher.pub"],
    )
    add_model_options(parser)
    add_json(parser)
    _register_calibrate(commands)
    _register_score(commands)
    parser = commands.add(
        "encode",
        "Write the latent means of records to a CSV.",
        _encode,
        ["encode hearts-1.fedlatent beats.csv --key publisher.pub --out latents.csv"],
    )
    add_model_options(parser)
    _add_records(parser, "records")
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="the CSV")
    add_json(parser)


def _register_verify(commands: Commands) -> None:
    parser = commands.add(
        "verify",
        "Check signature, hashes and golden vectors; exit 0 only when all hold.",
        _verify,
        [
            "verify hearts-1.fedlatent --key publisher.pub",
            "verify hearts-1.fedlatent --key publisher.pub --extract parts/",
        ],
    )
    add_model_options(parser, calibration=False)
    parser.add_argument(
        "--extract",
        type=Path,
        metavar="DIR",
        help="write the verified files and center.f32 there, for other runtimes",
    )
    add_json(parser)


def _register_calibrate(commands: Commands) -> None:
    parser = commands.add(
        "calibrate",
        "Set the threshold from normal records of this device.",
        _calibrate,
        ["calibrate hearts-1.fedlatent normals.csv --key publisher.pub --out calibration.json"],
    )
    add_model_options(parser, calibration=False)
    _add_records(parser, "normals")
    parser.add_argument(
        "--out", "-o", type=Path, required=True, metavar="FILE", help="where to write it"
    )
    parser.add_argument(
        "--quantile",
        type=float,
        help="share of normal records below the threshold; by default the bundle's",
    )
    parser.add_argument(
        "--recentre", action="store_true", help="also centre the latent space on these records"
    )
    add_accept(parser.add_argument)
    add_json(parser)


def _register_score(commands: Commands) -> None:
    parser = commands.add(
        "score",
        "Score records; a record above the threshold is flagged.",
        _score,
        [
            "score hearts-1.fedlatent beats.csv --key publisher.pub",
            "score hearts-1.fedlatent beats.npz --key publisher.pub --normals mine.npz",
            "score /var/lib/fedlatent-edge beats.csv --out scores.csv",
            "score hearts-1.fedlatent ward7.csv --key publisher.pub --map pulse=hr",
            "score hearts-1.fedlatent ward7.csv --key publisher.pub --delimiter ';' --decimal ,",
        ],
    )
    add_model_options(parser)
    _add_records(parser, "records")
    parser.add_argument(
        "--normals", type=Path, metavar="FILE", help="a few normal records to re-centre on"
    )
    add_accept(parser.add_argument)
    parser.add_argument("--out", "-o", type=Path, metavar="FILE", help="write all scores there")
    add_json(parser)


def _add_records(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name, type=Path, help="CSV (.csv, .csv.gz) or NPZ, raw records")
    parser.add_argument("--array", default="X", help="array of an NPZ with the records (X)")
    add_columns(parser.add_argument)
    add_map(parser.add_argument)
    add_dialect(parser.add_argument)


def _read(
    args: argparse.Namespace, model: "EdgeModel", path: Path, *, normal: bool = False
) -> "Found":
    """Records of a file; the check of what a device learns from stops at likely mistakes."""
    from fedlatent.client.edge.reader import read_records
    from fedlatent.shared.data.checks import check

    schema = model.bundle.manifest.schema
    found = read_records(
        path,
        schema,
        key=args.array,
        columns=args.column,
        names=names_of(args),
        dialect=dialect_of(args),
    )
    say_extra(found.extra, path.name)
    rows = found.records
    clipped = schema.outside(rows)
    if normal and len(rows):
        look = check(rows, schema, names=found.names)
        _say([one.text for one in look.findings], path)
        look.refuse("say --accept", [one.key for one in look.findings] if args.accept else ())
    elif clipped.any():
        look = check(rows, schema, names=found.names)
        told = [one.text for one in look.findings if one.kind in ("clipped", "far")]
        _say(
            [f"{(clipped > 0).sum()} of {len(rows)} records lie outside the public bounds", *told],
            path,
        )
    return found


def _say(findings: Sequence[str], path: Path) -> None:
    """Warn of what is most likely a mistake in the records of a file."""
    if len(findings) > _TOLD:
        findings = [*findings[:_TOLD], f"{len(findings) - _TOLD} more"]
    if findings:
        sys.stderr.write(f"warning: {path.name}: {'; '.join(findings)}; check units and columns.\n")


def _verify(args: argparse.Namespace) -> int:
    from fedlatent.shared.files import utc_text

    model = load_model(args)
    error = model.golden_error
    if args.extract is not None:
        _extract(model, args.extract)
    expires = model.bundle.manifest.expires
    expired = expires is not None and expires < utc_text()
    if args.json:
        facts = {"signed_by": model.bundle.key_id, "golden_error": error}
        print_json({"ok": True, **facts, "expires": expires, "expired": expired})
    else:
        print(
            f"good: signed by {model.bundle.key_id}, every hash matches, golden vectors within "
            f"{error:.1e} on this machine (allowed {model.graphs.tolerance:g})"
        )
        if expired:
            print(f"expired on {expires}: devices do not install it any more; it still scores")
    return 0


def _extract(model: "EdgeModel", folder: Path) -> None:
    from fedlatent.shared.files import write_atomic

    for name, data in model.bundle.files.items():
        write_atomic(folder / name, data)
    write_atomic(folder / "manifest.json", model.bundle.manifest.to_bytes())
    write_atomic(folder / "center.f32", model.density.mean.astype("<f4").tobytes())


def _info(args: argparse.Namespace) -> int:
    model = load_model(args)
    facts = model.info()
    if args.json:
        print_json(facts)
        return 0
    rows = [[name.replace("_", " "), str(value)] for name, value in facts.items()]
    print_table(str(args.bundle), ["fact", "value"], rows)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    model = load_model(args)
    normals = _read(args, model, args.normals, normal=True).records
    made = model.calibrate(normals, args.quantile, recentre=args.recentre)
    made.save_calibration(args.out)
    found = made.calibration
    if found is None:  # pragma: no cover - calibrate always sets it
        return 1
    facts = {
        "records": found.records,
        "threshold": found.threshold,
        "quantile": found.quantile,
        **_outside(model, normals),
    }
    say_doubt(made.doubt)
    if args.json:
        doubt = {"doubt": made.doubt} if args.recentre else {}
        print_json({**facts, **doubt, "path": str(args.out)})
    else:
        print(
            f"threshold {found.threshold:.6g} from {found.records} normal records: a further one "
            f"is flagged with probability at most {1 - (found.quantile or 0):.3g}; written to "
            f"{args.out}"
        )
    return 0


def _encode(args: argparse.Namespace) -> int:
    model = load_model(args)
    records = _read(args, model, args.records).records
    latents = model.encode(records)
    names = [f"z{i}" for i in range(latents.shape[1])]
    _write_csv(args.out, names, [[f"{value:.9g}" for value in row] for row in latents])
    if args.json:
        counts = {"records": len(latents), **_outside(model, records)}
        print_json({**counts, "latent_dim": len(names), "path": str(args.out)})
    else:
        print(f"{len(latents)} records of {len(names)} latent values in {args.out}")
    return 0


def _outside(model: "EdgeModel", records: "np.ndarray") -> dict[str, int]:
    """How many records lie outside the public bounds, and how many values of them are clipped."""
    clipped = model.bundle.manifest.schema.outside(records)
    return {"outside": int((clipped > 0).sum()), "clipped": int(clipped.sum())}


def _score(args: argparse.Namespace) -> int:
    from fedlatent.client.edge.footprint import edge_footprint
    from fedlatent.shared.errors import ConfigError

    if args.normals is not None and args.calibration is not None:
        raise ConfigError("Expected --normals or --calibration, got both; choose one.")
    model = load_model(args)
    found = _read(args, model, args.records)
    rows = found.records
    if args.normals is not None:
        model = model.recentre(_read(args, model, args.normals, normal=True).records)
        say_doubt(model.doubt)
    if len(rows):
        model.score(rows[:1])
    first = edge_footprint()
    tables = list(_chunks(model, rows))
    last = edge_footprint()
    confirm = confirmation(args.state, model.bundle.digest)
    if confirm is not None and len(rows):
        confirm()
    places = None if model.bundle.manifest.schema.window is None else found.rows
    if args.out is not None:
        _write_scores(args.out, tables, places)
    gaps = None if places is None else found.gaps
    _tell(args, model, tables, gaps, {"first_score_s": first.seconds, "peak_rss_mb": last.peak_mb})
    return 0


def _tell(
    args: argparse.Namespace,
    model: "EdgeModel",
    tables: "list[ScoreTable]",
    gaps: int | None,
    process: dict[str, float],
) -> None:
    """Show scores, flags, what was clipped, gaps of windows, and what the process took."""
    scores = [float(value) for made in tables for value in made.score]
    flags = [bool(value) for made in tables for value in made.flag]
    clipped = [int(value) for made in tables for value in made.clipped]
    outside = sum(map(bool, clipped))
    if args.json:
        counts = {"records": len(scores), "flagged": sum(flags), "threshold": model.threshold}
        counts |= {"outside": outside} | ({} if gaps is None else {"gaps": gaps})
        lists = {"scores": scores, "flags": flags, "clipped": clipped, "process": process}
        doubt = {} if args.normals is None else {"doubt": model.doubt}
        print_json({**counts, **model.calibration_info(), **doubt, **lists})
        return
    highest = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:_SHOWN]
    rows = [
        [str(i), f"{scores[i]:.3f}", "flagged" if flags[i] else "", str(clipped[i] or "")]
        for i in highest
    ]
    title = f"{len(scores)} records, {sum(flags)} flagged, {outside} outside the public bounds"
    print_table(title, ["#record", "#score", "flag", "#clipped"], rows)
    print(
        f"the highest; threshold {model.threshold:.4g}; first score {process['first_score_s']:.2f} "
        f"s after start, peak memory {process['peak_rss_mb']:.0f} MB"
    )
    if gaps:
        print(f"gaps in time: {gaps}; no record reaches over one")


def _chunks(model: "EdgeModel", rows: "np.ndarray") -> Iterator["ScoreTable"]:
    for start in range(0, len(rows), _CHUNK):
        yield model.score(rows[start : start + _CHUNK])


def _write_scores(path: Path, tables: list["ScoreTable"], places: "Rows | None") -> None:
    """A line a record; with ``places``, of windows, also number and time of its last row."""
    names = [name for name in (tables[0].parts if tables else []) if name != "score"]
    where = [] if places is None else ["row"] if places.stamp is None else ["row", "row_time"]
    rows: list[list[str]] = []
    for made in tables:
        for i, value in enumerate(made.score):
            place = {} if places is None else places.place(len(rows))
            parts = [f"{made.parts[name][i]:.9g}" for name in names]
            marks = [str(int(made.flag[i])), str(int(made.clipped[i]))]
            at = [str(place[key]) for key in where]
            rows.append([str(len(rows)), *at, f"{value:.9g}", *marks, *parts])
    _write_csv(path, ["record", *where, "score", "flag", "clipped", *names], rows)


def _write_csv(path: Path, names: list[str], rows: list[list[str]]) -> None:
    import csv
    import io

    from fedlatent.shared.files import write_atomic

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
