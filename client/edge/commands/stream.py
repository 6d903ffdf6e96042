"""``stream``: score an endless stream and say what changes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from client.edge.commands.common import Commands, add_model_options, load_model

if TYPE_CHECKING:
    from client.edge.events import Sink
    from client.edge.runtime import EdgeModel
    from client.edge.sources import Source
    from client.edge.stream import StreamOptions
    from client.edge.windows import Decoder
    from shared.data.schema import Schema

_HELP = "Score a stream record by record; print alarms, drift and heartbeats as JSON lines."
_EXAMPLES = [
    "stream hearts-1.fedlatent --key publisher.pub < beats.csv",
    "stream /var/lib/fedlatent-edge /var/log/beats.csv --follow --output flags",
    "stream servers-1.fedlatent metrics.jsonl --key publisher.pub --format jsonl --window 1",
    "stream hearts-1.fedlatent http://127.0.0.1:9000/beats --key publisher.pub --alarm 3/5",
    "stream hearts-1.fedlatent mqtt://broker/ward/7/beats --key publisher.pub --format f32",
    "stream hearts-1.fedlatent --key publisher.pub --calibrate 500 --save-calibration mine.json",
]


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("stream", _HELP, _run, _EXAMPLES)
    add_model_options(parser)
    parser.add_argument(
        "source",
        nargs="?",
        default="-",
        help="'-' for standard input, a file, or an address of http, https, mqtt or mqtts",
    )
    _add_input(parser)
    _add_output(parser)
    group = parser.add_argument_group("this device")
    group.add_argument(
        "--calibrate",
        type=int,
        metavar="N",
        help="take the first N records as normal and set the threshold from them",
    )
    group.add_argument("--quantile", type=float, help="of that threshold; by default the bundle's")
    group.add_argument(
        "--recentre", action="store_true", help="also centre the latent space on them"
    )
    group.add_argument(
        "--save-calibration",
        type=Path,
        metavar="FILE",
        help="write the calibration there; when it is there already, use it",
    )
    group.add_argument(
        "--drift-block",
        type=int,
        default=128,
        metavar="N",
        help="records in a block of the drift tests; 0 for none (128)",
    )


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--format",
        choices=("csv", "jsonl", "f32", "f64"),
        default="csv",
        help="rows as text, as JSON lines, or as raw little-endian floats (csv)",
    )
    group.add_argument("--columns", help="names of CSV columns in record order, with commas")
    group.add_argument("--json-key", default="values", help="where a JSON object has its numbers")
    group.add_argument(
        "--window",
        type=int,
        metavar="HOP",
        help="a row is a time step: make a record of the last steps every HOP steps",
    )
    group.add_argument(
        "--skip-bad", action="store_true", help="count rows that are not as they must be and go on"
    )
    group.add_argument("--follow", action="store_true", help="wait for a file to grow")
    group.add_argument(
        "--from-start", action="store_true", help="start a followed file at its start"
    )
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help="bearer token (http), password (mqtt)"
    )
    group.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust, in PEM")
    group.add_argument(
        "--idle",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds without a byte after which an http connection is made again (120)",
    )
    group.add_argument(
        "--give-up",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds without a connection after which the source is lost: exit 9 (600)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        choices=("alarms", "flags", "all"),
        default="alarms",
        help="flags adds flagged records, all adds every score (alarms)",
    )
    group.add_argument(
        "--alarm",
        default="3/5",
        metavar="K/N",
        help="an alarm starts when K of the last N records are flagged (3/5)",
    )
    group.add_argument(
        "--clear",
        type=int,
        default=10,
        metavar="M",
        help="it ends after M records in a row that are not (10)",
    )
    group.add_argument(
        "--beat", type=float, default=60.0, metavar="S", help="seconds between beats; 0 none (60)"
    )
    group.add_argument("--log", type=Path, metavar="FILE", help="write events there")
    group.add_argument(
        "--log-bytes",
        type=int,
        default=1 << 20,
        metavar="N",
        help="size at which that file becomes FILE.1 (1 MiB)",
    )


def _run(args: argparse.Namespace) -> int:
    from client.edge.stream import Stop, Stream
    from client.edge.windows import Windows, row_schema

    with Stop() as stop:
        model = load_model(args)
        schema = model.bundle.manifest.schema
        windows = None if args.window is None else Windows(schema, args.window)
        row = schema if windows is None else row_schema(schema)
        options = _options(args, model)
        source = _source(args, row)
        try:
            sink = _sink(args)
            try:
                decoder = _decoder(args, row, source)
                Stream(model, source, decoder, sink, options, windows=windows, stop=stop).run()
            finally:
                sink.close()
        finally:
            source.close()
    return 0


def _options(args: argparse.Namespace, model: "EdgeModel") -> "StreamOptions":
    from client.edge.events import Rule
    from client.edge.stream import CalibrationPlan, StreamOptions, confirmation
    from shared.errors import ConfigError

    flagged, _, of = args.alarm.partition("/")
    if not (flagged.isdecimal() and of.isdecimal()):
        raise ConfigError(f"Expected --alarm as K/N, such as 3/5, got {args.alarm!r}.")
    alone = args.save_calibration, args.quantile, args.recentre or None
    if args.calibrate is None and any(value is not None for value in alone):
        raise ConfigError(
            "Expected --calibrate N with --save-calibration, --recentre or --quantile, got none; "
            "add it."
        )
    if args.calibrate is not None and args.calibration is not None:
        raise ConfigError("Expected --calibrate or --calibration, got both; leave one out.")
    plan = None
    if args.calibrate is not None:
        plan = CalibrationPlan(
            records=args.calibrate,
            quantile=args.quantile,
            recentre=args.recentre,
            save=args.save_calibration,
        )
    return StreamOptions(
        output=args.output,
        rule=Rule(flagged=int(flagged), of=int(of), calm=args.clear),
        beat=args.beat,
        calibration=plan,
        drift_block=args.drift_block,
        confirm=confirmation(args.state, model.bundle.digest),
    )


def _source(args: argparse.Namespace, row: "Schema") -> "Source":
    from client.edge.sources import open_source
    from client.edge.windows import raw_bytes
    from shared.errors import ConfigError

    token = None
    if args.token_file is not None:
        try:
            token = args.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Expected a token in {args.token_file}, got {type(error).__name__}; check it."
            ) from None
    return open_source(
        args.source,
        follow=args.follow,
        from_start=args.from_start,
        record_bytes=raw_bytes(args.format, row),
        token=token,
        ca=args.ca,
        idle=args.idle,
        give_up=args.give_up,
    )


def _decoder(args: argparse.Namespace, row: "Schema", source: "Source") -> "Decoder":
    from client.edge.sources import FollowSource
    from client.edge.windows import CsvDecoder, make_decoder

    decoder = make_decoder(
        args.format,
        row,
        columns=None if args.columns is None else args.columns.split(","),
        key=args.json_key,
        skip_bad=args.skip_bad,
        where=source.name,
    )
    if isinstance(source, FollowSource) and isinstance(decoder, CsvDecoder) and not args.from_start:
        line = source.first_line(1 << 20)
        if line:
            decoder.take_header(line)
    return decoder


def _sink(args: argparse.Namespace) -> "Sink":
    from client.edge.events import LogFile, StandardOutput

    return StandardOutput() if args.log is None else LogFile(args.log, args.log_bytes)
