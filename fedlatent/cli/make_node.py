"""``fedlatent client join`` and ``client init``: from records to a node that may be started."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli.check import judge
from fedlatent.cli.console import err, out, print_json, styled
from fedlatent.cli.options import (
    SCHEMA,
    AcceptOption,
    ArrayOption,
    ClientHomeOption,
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

if TYPE_CHECKING:
    from fedlatent.client.policy import NodeConfig
    from fedlatent.shared.config import RunConfig

INIT_EXAMPLES = (
    "Examples: fedlatent client init hospital-a --server fl.example:8443 --ca ca.crt "
    "--data beats.npz --schema run.toml --max-epsilon 4 | fedlatent client init hospital-b "
    "--server fl.example:8443 --ca ca.crt --data beats.csv --schema run.toml --person patient "
    "--person-cap 20"
)
JOIN_EXAMPLES = (
    "Examples: fedlatent client join hospital-a.invite.toml --data beats.npz "
    "--fingerprint 3f:9a:... | fedlatent client join hospital-b.invite.toml --data visits.csv "
    "--label sick --person patient --person-cap 20 --fingerprint 3f9a..."
)

DataOption = Annotated[
    Path,
    typer.Option(
        help="Private records: CSV, Parquet, NPZ, a folder of images and more.", exists=True
    ),
]
MaxEpsilonOption = Annotated[
    float, typer.Option(help="Largest epsilon over the life of these records.")
]
DeltaOption = Annotated[float, typer.Option(help="Delta of that epsilon.")]
NameOption = Annotated[
    str, typer.Option("--data-name", help="Name of the data set: key of its budget.")
]
PersonOption = Annotated[
    str | None, typer.Option(help="Column or array that says whose record it is; it never leaves.")
]
PersonCapOption = Annotated[
    int | None, typer.Option(min=1, help="Most records of one person; others are never used.")
]


def init(
    site: Annotated[str, typer.Argument(help="Name of this site.")],
    server: Annotated[str, typer.Option(help="The gateway, host:port.")],
    ca: Annotated[Path, typer.Option(help="The federation's ca.crt.", exists=True)],
    data: DataOption,
    schema: Annotated[Path, SCHEMA],
    max_epsilon: MaxEpsilonOption = 4.0,
    delta: DeltaOption = 1e-5,
    name: NameOption = "records",
    array: ArrayOption = "X",
    column: ColumnOption = None,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    label: LabelOption = None,
    normal_label: NormalLabelOption = None,
    person: PersonOption = None,
    person_cap: PersonCapOption = None,
    accept: AcceptOption = False,
    home: ClientHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make keys, configuration and policy; checks that the records fit and look right."""
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.toml import parse_toml

    try:
        tables = parse_toml(schema.read_text(encoding="utf-8"), str(schema))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{schema}: expected TOML, got: {error}.") from None
    if not isinstance(tables.get("data"), dict):
        raise ConfigError(f"Expected a table [data] in {schema}, got none; use the run file.")
    said = {
        **{"path": str(data.resolve()), "name": name, "records_key": array},
        **dialect_of(delimiter, decimal, encoding, header),
        **{"columns": column or None, "label_key": label, "normal_label": label_of(normal_label)},
        **{"person_key": person, "max_records_per_person": person_cap, "schema": tables["data"]},
    }
    _make(
        *(home, site, server, ca.read_bytes(), said),
        policy={"max_epsilon": max_epsilon, "delta": delta},
        accept=accept,
        json=json,
    )


def join(
    invitation: Annotated[Path, typer.Argument(help="The file that the operator sent.")],
    data: DataOption,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="What the operator told you of the authority, to compare.", show_default=False
        ),
    ] = None,
    max_epsilon: MaxEpsilonOption = 4.0,
    delta: DeltaOption = 1e-5,
    name: NameOption = "records",
    array: ArrayOption = "X",
    column: ColumnOption = None,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    label: LabelOption = None,
    normal_label: NormalLabelOption = None,
    person: PersonOption = None,
    person_cap: PersonCapOption = None,
    accept: AcceptOption = False,
    home: ClientHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make a node of an invitation: as 'client init', with server, authority and schema from it."""
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.invitation import Invitation, same_fingerprint

    asked = Invitation.load(invitation)
    if fingerprint is not None and not same_fingerprint(fingerprint, asked.fingerprint):
        raise ConfigError(
            f"Expected the fingerprint that you were told in {invitation}, got "
            f"{asked.fingerprint}; do not use this file, and ask the operator.",
            field="fingerprint",
            reason="fingerprint",
        )
    said = {
        **{"path": str(data.resolve()), "name": name, "records_key": array},
        **dialect_of(delimiter, decimal, encoding, header),
        **{"columns": column or None, "label_key": label, "normal_label": label_of(normal_label)},
        **{"person_key": person, "max_records_per_person": person_cap},
        **{"schema": asked.run.data.to_dict()},
    }
    _make(
        *(home, asked.site, asked.server, asked.certificate.encode(), said),
        policy={"max_epsilon": max_epsilon, "delta": delta},
        accept=accept,
        json=json,
        run=asked.run,
    )
    if fingerprint is None and not json:
        err.print(
            styled("yellow", "warning:", " compare with the operator before you start the node:")
        )
        err.print(f"  authority {asked.fingerprint}")


def _make(
    home: Path | None,
    site: str,
    server: str,
    authority: bytes,
    said: Mapping[str, object],
    *,
    policy: Mapping[str, object],
    accept: bool,
    json: bool,
    run: "RunConfig | None" = None,
) -> None:
    """Check the records, make the node, and say what comes next."""
    from pydantic import ValidationError

    from fedlatent.client.home import ClientHome
    from fedlatent.client.known import note_records
    from fedlatent.client.local import read_checked
    from fedlatent.client.policy import NodeConfig
    from fedlatent.client.service import init_client
    from fedlatent.shared.config import invalid
    from fedlatent.shared.invitation import fingerprint_of

    place = ClientHome.find(home)
    data = {key: value for key, value in said.items() if value is not None}
    try:
        preview = NodeConfig.model_validate({"site": site, "data": data, "policy": policy})
    except ValidationError as error:
        raise invalid("client init", error) from None
    dataset, found = read_checked(place, preview)
    judge(found, accept=accept, quiet=json)
    if accept:
        data["accept"] = [one.key for one in found.stops()]
    normals = dataset.normals()
    init_client(place, site=site, server=server, ca_certificate=authority, data=data, policy=policy)
    warnings = [note_records(place, preview.data.name, normals.records)]
    warnings.append(None if run is None else _refusal(preview, run, len(normals)))
    if json:
        facts = {
            "home": str(place.root),
            "records": len(normals),
            "key": str(place.node_public_key),
            "authority": fingerprint_of(authority),
        }
        told = "; ".join(text for text in warnings if text) or None
        print_json(facts | {"warning": told, "check": found.to_json()})
        return
    for text in warnings:
        if text is not None:
            err.print(styled("yellow", "warning:", f" {text}"))
    _told(place.root, place.node_public_key, place.config, preview, len(normals))


def _refusal(config: "NodeConfig", run: "RunConfig", records: int) -> str | None:
    """Why this node would refuse the run of an invitation, or None."""
    from fedlatent.shared.errors import PolicyRefusal
    from fedlatent.shared.privacy.plan import PrivacyPlan

    try:
        config.policy.check(run, config.data.record_schema, records)
        config.policy.check_plan(PrivacyPlan.from_config(run))
    except PolicyRefusal as error:
        return f"this node would refuse the run of the invitation: {error}"
    return None


def _told(root: Path, key: Path, rules: Path, config: "NodeConfig", records: int) -> None:
    most = config.policy.max_epsilon
    out.print(f"node {config.site} made in {root}: {records} records, epsilon at most {most}")
    if (cap := config.data.max_records_per_person) is not None:
        out.print(
            f"  at most {cap} records of each person, by the column {config.data.person_key!r}"
        )
    out.print(f"  send to the operator: {key}, and that there are {records} records")
    out.print(f"  your rules, to read and change: {rules}")
    out.print(f"  one run of epsilon {most:g} uses the whole budget of these records")
    out.print(styled("bold", f"fedlatent client start --home {root}", before="next: "))
