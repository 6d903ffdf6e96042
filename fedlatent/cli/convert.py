"""``fedlatent data convert``: records of any kind of source as arrays that devices take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedlatent.cli.console import err, out, print_json, size, styled
from fedlatent.cli.options import (
    SCHEMA,
    ArrayOption,
    ClientOption,
    ColumnOption,
    DecimalOption,
    DelimiterOption,
    EncodingOption,
    HeaderOption,
    JsonOption,
    LabelOption,
    NormalLabelOption,
    dialect_of,
    label_of,
)

EXAMPLES = (
    "Examples: fedlatent data convert screws/ screws.npz --label folder --normal-label good | "
    "fedlatent data convert patients.parquet patients.npz --schema patients.toml"
)


def convert(
    file: Annotated[
        Path, typer.Argument(help="Records: a file or a folder of images.", exists=True)
    ],
    target: Annotated[Path, typer.Argument(help="The NPZ to write.")],
    schema: Annotated[Path | None, SCHEMA] = None,
    label: LabelOption = None,
    normal_label: NormalLabelOption = None,
    client: ClientOption = None,
    column: ColumnOption = None,
    array: ArrayOption = "X",
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    json: JsonOption = False,
) -> None:
    """Write raw records as an NPZ: X, and label (0 normal, 1 not) and client where they are named.

    With a schema, its columns are found by name and its window cuts rows into records: what a
    device scores without the packages that read the source. The file holds private records.
    """
    import io

    import numpy as np

    from fedlatent.shared.data.dialect import Dialect
    from fedlatent.shared.data.readers import read_raw
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.files import ending_of, write_atomic
    from fedlatent.simulations.own_data import load_schema

    if ending_of(target, [".npz"]) is None:
        raise ConfigError(
            f"Expected a target ending in .npz, got {target.name!r}; name it so.", field="target"
        )
    if target.exists() and target.samefile(file):
        raise ConfigError(
            f"Expected a target beside {file}, got the file itself; name another.", field="target"
        )
    chosen = None if schema is None else load_schema(schema)
    raw = read_raw(
        file,
        chosen,
        records_key=array,
        columns=column,
        label_key=label,
        normal_label=label_of(normal_label),
        client_key=client,
        dialect=Dialect(**dialect_of(delimiter, decimal, encoding, header)),
    )
    if chosen is not None:
        chosen.preprocess(raw.records)  # what does not fit is refused here
    sides = {"label": raw.label, "client": raw.client_id}
    arrays: dict[str, Any] = {key: one for key, one in sides.items() if one is not None}
    packed = io.BytesIO()
    np.savez_compressed(packed, X=raw.records, **arrays)
    write_atomic(target, packed.getvalue(), mode=0o600)
    shape = list(raw.records.shape)
    if json:
        facts = {"file": str(target), "shape": shape, "bytes": target.stat().st_size}
        print_json(facts | {"left_out": dict(raw.left_out)})
    else:
        out.print(
            f"{shape[0]} records of shape {shape[1:]} in {target}, {size(target.stat().st_size)}"
        )
        if told := ", ".join(f"{count} {why}" for why, count in raw.left_out.items()):
            err.print(styled("yellow", "warning:", f" left out: {told}"))
