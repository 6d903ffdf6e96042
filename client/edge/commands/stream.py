"""``stream``: score an endless stream and say what changes."""

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedlatent.client.edge.commands.common import (
    Commands,
    add_accept,
    add_columns,
    add_dialect,
    add_map,
    add_model_options,
    confirmation,
    dialect_of,
    load_model,
    names_of,
)
from fedlatent.shared.errors import ConfigError

if TYPE_CHECKING:
    from fedlatent.client.edge.decoders import Layout
    from fedlatent.client.edge.drift import DriftMonitor
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.client.edge.sources import FollowSource
    from fedlatent.client.edge.stream import CalibrationPlan
    from fedlatent.shared.data.dialect import Dialect
    from fedlatent.shared.data.schema import Schema
    from fedlatent.shared.data.series import Window

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_HELP = "Score a stream record by record; print alarms, drift and heartbeats as JSON lines."
_EXAMPLES = [
    "stream hearts-1.fedlatent --key publisher.pub < beats.csv",
    "stream /var/lib/fedlatent-edge /var/log/beats.csv --follow --report flags",
    "stream servers-1.fedlatent metrics.jsonl --key publisher.pub --format jsonl --window 1",
    "stream servers-1.fedlatent metrics.csv.gz --key publisher.pub --window 1 --time when "
    "--step 1min --skip-bad",
    "stream hearts-1.fedlatent http://127.0.0.1:9000/beats --key publisher.pub --alarm 3/5",
    "stream hearts-1.fedlatent mqtt://broker/ward/7/beats --key publisher.pub --format f32",
    "stream hearts-1.fedlatent --key publisher.pub --calibrate 500 --save-calibration mine.json",
]


def register(commands: Commands) -> None:
    """Add ``stream`` to the command line."""
    parser = commands.add("stream", _HELP, _run, _EXAMPLES)
    add_model_options(parser)
    parser.add_argument(
        "source",
        nargs="?",
        default="-",
        help="'-' for standard input, a file (.gz, too), or an address of http, https, mqtt or "
        "mqtts",
    )
    _add_input(parser)
    _add_output(parser)
    add = parser.add_argument_group("this device").add_argument
    add(
        "--calibrate",
        type=int,
        metavar="N",
        help="take the first N records as normal and set the threshold from them",
    )
    add("--quantile", type=float, help="of that threshold; by default the bundle's")
    add("--recentre", action="store_true", help="also centre the latent space on them")
    add(
        "--save-calibration",
        type=Path,
        metavar="FILE",
        help="write the calibration there; when it is there already, use it",
    )
    add_accept(add)
    add_drift(parser)


def add_drift(parser: argparse.ArgumentParser) -> None:
    """Add the options of `drift_monitor`."""
    add = parser.add_argument_group("drift").add_argument
    add(
        "--drift-block",
        type=int,
        default=128,
        metavar="N",
        help="records in a block; 0 for no monitor (%(default)s)",
    )
    add(
        "--drift-least",
        type=float,
        default=1.0,
        metavar="D",
        help="smallest shift that counts, in standard deviations within a client (%(default)s)",
    )


def drift_monitor(args: argparse.Namespace, model: "EdgeModel") -> "DriftMonitor | None":
    """The monitor that the options of `add_drift` ask for."""
    from fedlatent.client.edge.drift import DriftMonitor

    if not args.drift_block:
        return None
    return DriftMonitor(model.density, block=args.drift_block, least=args.drift_least)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("input").add_argument
    add(
        "--format",
        choices=("csv", "jsonl", "f32", "f64"),
        default="csv",
        help="rows as text, as JSON lines (lists, or objects with one at 'values'), or as raw "
        "little-endian floats (%(default)s)",
    )
    add_columns(add)
    add_map(add)
    add_dialect(add)
    add(
        "--window",
        type=int,
        metavar="HOP",
        help="a row is a time step: make a record of the last steps every HOP steps; by default as "
        "the bundle says",
    )
    add(
        "--time",
        metavar="COLUMN",
        help="column (or JSON key) of the rows' times, in seconds or as ISO 8601 dates; alarms "
        "name them, and no window reaches back in time",
    )
    add(
        "--step",
        type=_duration,
        metavar="TIME",
        help="usual time between two rows, such as 500ms, 30s, 1min or 1h; no window reaches over "
        "a hole of more than one and a half of it",
    )
    add(
        "--skip-bad",
        action="store_true",
        help="count rows that are not as they must be, go on; no window reaches over one",
    )
    add("--follow", action="store_true", help="take what is added to a file from now on")
    add("--token-file", type=Path, metavar="FILE", help="bearer token (http), password (mqtt)")
    add(
        "--give-up",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds without a byte (http) or a connection (mqtt) after which the source is lost: "
        "exit 9 (%(default)s)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--report",
        choices=("alarms", "flags", "all"),
        default="alarms",
        help="flags adds flagged records, all adds every score (%(default)s)",
    )
    add(
        "--alarm",
        type=_rule,
        default="3/5",
        metavar="K/N",
        help="an alarm starts when K of the last N records are flagged (%(default)s)",
    )
    add(
        "--clear",
        type=int,
        default=10,
        metavar="M",
        help="it ends after M records in a row that are not (%(default)s)",
    )
    add(
        "--beat",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds between beats; 0 for none (%(default)s)",
    )
    add("--log", type=Path, metavar="FILE", help="write events there")
    add(
        "--log-bytes",
        type=int,
        default=1 << 20,
        metavar="N",
        help="size at which that file becomes FILE.1 (%(default)s)",
    )


def _run(args: argparse.Namespace) -> int:
    from fedlatent.client.edge.events import Debounce, EventLog
    from fedlatent.client.edge.formats import DECODERS, CsvDecoder
    from fedlatent.client.edge.sources import FollowSource, open_source
    from fedlatent.client.edge.stream import Stop, Stream
    from fedlatent.client.edge.windows import Windows

    model = load_model(args)
    row, window = _row_and_window(args, model.bundle.manifest.schema)
    debounce, bounds = (Debounce(calm=args.clear, **args.alarm) for _ in range(2))
    calibration = _plan(args)
    drift = drift_monitor(args, model)
    source = open_source(
        args.source,
        follow=args.follow,
        record_bytes=row.raw_size * DECODERS[args.format].item_bytes,
        token=_token(args.token_file),
        give_up=args.give_up,
    )
    closing = contextlib.closing
    with Stop() as stop, closing(source), closing(EventLog(args.log, args.log_bytes)) as log:
        decoder = DECODERS[args.format](row, _layout(args, window, source.name))
        if isinstance(source, FollowSource) and isinstance(decoder, CsvDecoder):
            decoder.take_header(_first_line(source, decoder.layout.dialect))
        Stream(
            model=model,
            source=source,
            decoder=decoder,
            write=log.write,
            windows=Windows(window),
            output=args.report,
            debounce=debounce,
            bounds=bounds,
            beat=args.beat,
            calibration=calibration,
            drift=drift,
            confirm=confirmation(args.state, model.bundle.digest),
            stop=stop,
        ).run()
    return 0


def _row_and_window(args: argparse.Namespace, schema: "Schema") -> "tuple[Schema, Window]":
    """The schema of a row, and how rows become records: as the bundle says, but for options."""
    from fedlatent.client.edge.windows import row_schema
    from fedlatent.shared.data.series import Window

    found = schema.window or Window(length=1)
    if args.window is not None:
        if schema.columns and schema.window is None:
            raise ConfigError(
                "Expected no --window, since a row is a record of this bundle, got one; leave it "
                "out."
            )
        found = replace(found, length=schema.shape[-1], step=args.window)
    if args.time is not None:
        found = replace(found, time=args.time)
    if args.step is not None:
        if not found.time:
            raise ConfigError(
                "Expected --time with --step, got none; name the column of the rows' times."
            )
        found = replace(found, rate=1 / args.step)
    windowed = schema.window is not None or args.window is not None
    return row_schema(schema) if windowed else schema, found


def _layout(args: argparse.Namespace, window: "Window", name: str) -> "Layout":
    from fedlatent.client.edge.decoders import Layout
    from fedlatent.client.edge.formats import DECODERS

    # Raw formats have no place for times and series that the bundle asks for.
    raw = DECODERS[args.format].item_bytes > 0
    return Layout(
        columns=args.column,
        names=names_of(args),
        time=(args.time or "") if raw else window.time,
        group="" if raw else window.group,
        skip_bad=args.skip_bad,
        name=name,
        dialect=dialect_of(args),
    )


def _first_line(source: "FollowSource", dialect: "Dialect") -> bytes:
    """The first line of a file that is followed, in UTF-8."""
    if len("\n\n".encode(dialect.encoding)) != len("\n".encode(dialect.encoding)) + 1:
        raise ConfigError(
            "Expected an encoding whose line ends are one byte with --follow, got "
            f"{dialect.encoding}; write the file in UTF-8.",
            field="encoding",
        )
    return dialect.as_utf8(source.first_line(), source.name)


def _duration(text: str) -> float:
    """Seconds of a text such as 500ms, 30s, 1min, 2h or 1d; a bare number is seconds."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        seconds = float(number) * _UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 1e-9 <= seconds <= 1e9:
        raise ConfigError(
            f"Expected --step as a time such as 500ms, 30s, 1min, 2h or 1d, got {text!r}."
        )
    return seconds


def _rule(text: str) -> dict[str, int]:
    flagged, _, of = text.partition("/")
    if not (flagged.isdecimal() and of.isdecimal()):
        raise ConfigError(f"Expected --alarm as K/N, such as 3/5, got {text!r}.")
    return {"flagged": int(flagged), "of": int(of)}


def _plan(args: argparse.Namespace) -> "CalibrationPlan | None":
    from fedlatent.client.edge.stream import CalibrationPlan

    if args.calibrate is not None:
        return CalibrationPlan(
            records=args.calibrate,
            quantile=args.quantile,
            recentre=args.recentre,
            save=args.save_calibration,
            accept=args.accept,
        )
    if args.recentre or args.quantile is not None or args.save_calibration is not None:
        raise ConfigError(
            "Expected --calibrate N with --save-calibration, --recentre or --quantile, got none; "
            "add it."
        )
    return None


def _token(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Expected a token in {path}, got {type(error).__name__}; check it."
        ) from None
