"""``fedlatent model``: the families of models, their sizes and what of them leaves a client."""

import json as json_lines
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlatent.cli.console import out, print_json, size, table
from fedlatent.cli.options import JsonOption
from fedlatent.shared.errors import ConfigError

if TYPE_CHECKING:
    from fedlatent.shared.models import VAE

app = typer.Typer(no_args_is_help=True, help="Families of models and their sizes.")


@app.command("list", epilog="Examples: fedlatent model list | fedlatent model list --json")
def list_families(json: JsonOption = False) -> None:
    """List every family: what it is for, and its presets."""
    from fedlatent.shared.models import FAMILIES

    found: list[dict[str, Any]] = [
        {"family": name, "about": family.about, "presets": list(family.presets)}
        for name, family in FAMILIES.items()
    ]
    if json:
        print_json({"families": found})
        return
    shown = table("model families", "family", "what it is for", "presets")
    for one in found:
        shown.add_row(one["family"], one["about"], ", ".join(one["presets"]))
    out.print(shown)


@app.command(
    epilog="Examples: fedlatent model show gaussian --shape 128 | "
    "fedlatent model show gaussian --shape 1,28,28 --preset small --option network=conv2d "
    "--option hidden=16,32 | fedlatent model show gaussian --shape 28,28 --json"
)
def show(
    family: Annotated[str, typer.Argument(help="One of `fedlatent model list`.")],
    shape: Annotated[str, typer.Option(help="Of one record, as 128 or 1,28,28.")],
    preset: Annotated[
        str | None, typer.Option(help="A size of the family; all of them when left out.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="A field of the family as name=value, lists with commas; repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show how large a family's models are, and what of them leaves a client."""
    facts = _facts(family, _shape(shape), preset, dict(map(_option, option or [])))
    if json:
        print_json(facts)
    else:
        _print(facts)


def _facts(
    family: str, shape: tuple[int, ...], preset: str | None, options: dict[str, object]
) -> dict[str, Any]:
    from fedlatent.shared.models import FAMILIES, build

    known = FAMILIES[family].presets if family in FAMILIES else {}
    sized = []
    for name in [preset] if preset or not known else known:
        chosen = options if name is None else {"preset": name, **options}
        made = build(family, chosen, shape, seed=0)
        sized.append({"preset": name, **_sizes(made)})
    return {
        "family": family,
        "about": FAMILIES[family].about,
        "shape": list(shape),
        "options": options,
        "models": sized,
    }


def _sizes(made: "VAE") -> dict[str, Any]:
    """Numbers of one model, and the tensors that leave with "encoder" and with "full" sharing."""
    from fedlatent.shared.models import encoder_state
    from fedlatent.shared.models.size import size_of

    counted = size_of(made)
    leaving = encoder_state(made)
    return {
        "k": made.latent_dim,
        "noise_dim": made.noise_dim,
        "parameters": counted.parameters,
        "shared": counted.shared,
        "encode": counted.encode,
        "decode": counted.decode,
        "leaves": {key: list(value.shape) for key, value in leaving.items()},
        "stays": len(made.state_dict()) - len(leaving),
    }


def _print(facts: dict[str, Any]) -> None:
    sizes = facts["models"]
    shown = table(
        f"{facts['family']} for records of {'x'.join(map(str, facts['shape']))}",
        "preset",
        "#k",
        "#noise",
        "#parameters",
        "#shared",
        "#bytes",
        "#encode",
        "#decode",
    )
    for one in sizes:
        counts = [f"{one[name]:,}" for name in ("k", "noise_dim", "parameters", "shared")]
        work = [_work(one[name]) for name in ("encode", "decode")]
        shown.add_row(one["preset"] or "-", *counts, size(4 * one["shared"]), *work)
    out.print(shown)
    out.print(
        f"{facts['about']}\nk latents; noise: normal numbers a record takes in training; shared: "
        "parameters of the encoder, and their bytes; encode, decode: multiply-adds of a record",
    )
    if len(sizes) == 1:
        _print_leaving(sizes[0])


def _print_leaving(one: dict[str, Any]) -> None:
    shown = table('what leaves a client with sharing "encoder"', "tensor", "shape", "#numbers")
    for key, dimensions in one["leaves"].items():
        shown.add_row(key, "x".join(map(str, dimensions)), f"{math.prod(dimensions):,}")
    out.print(shown)
    out.print(f'{one["stays"]} other tensors stay at the client; with sharing "full" all leave')


def _work(count: int) -> str:
    """Multiply-adds for people."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigError(
            f"Expected --shape as whole numbers with commas, got {text!r}; "
            "give for example 1,28,28."
        ) from None


def _option(text: str) -> tuple[str, object]:
    """``name=value`` with the value as JSON has it; commas make a list, other words are text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(
            f"Expected --option as name=value, got {text!r}; give for example latent_dim=16."
        )
    if "," in value and not value.startswith("["):
        return name, [_value(part) for part in value.split(",") if part]
    return name, _value(value)


def _value(text: str) -> object:
    try:
        value: object = json_lines.loads(text)
    except ValueError:
        return text
    return value
