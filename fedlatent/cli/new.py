"""``fedlatent new``: the beginnings of a package that adds to fedlatent."""

import re
from pathlib import Path
from typing import Annotated

import typer

from fedlatent.cli.console import out, styled

app = typer.Typer(no_args_is_help=True, help="Begin a package that adds to fedlatent.")

_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "fedlatent-{name}"
version = "0.1.0"
description = "A family of models for fedlatent."
requires-python = ">=3.11"
dependencies = ["fedlatent"]

[project.entry-points."fedlatent.families"]
{name} = "{module}:FAMILY"

[tool.setuptools]
py-modules = ["{module}"]
"""

_MODULE = '''\
"""The family of models {name!r}."""

from torch import Tensor

from fedlatent.shared.models import Family
from fedlatent.shared.models.gaussian import PRESETS, GaussianConfig, GaussianVAE


class {title}VAE(GaussianVAE):
    """The Gaussian family to begin with: replace what shall be different.

    A family is its options (a frozen dataclass) and a model with ``encode``, ``decode`` and
    ``forward``, which gives distortion and rate of each record by itself. All randomness comes in
    as an argument: see ``fedlatent.shared.models.base.VAE``.
    """

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]` of latents `[B, k]`."""
        return super().decode(z)


FAMILY = Family(
    about="say in a few words what it is for",
    config=GaussianConfig,
    model={title}VAE,
    presets=PRESETS,
)
'''

_TEST = '''\
"""What every family must do: terms, gradients, clipping, training, export."""

from fedlatent.testing import Case, contract

CASES = {{
    "plain": Case(
        family="{name}", options={{"latent_dim": 3, "hidden": [7]}}, shape=(12,), exported=True
    ),
    "image": Case(
        family="{name}",
        options={{"latent_dim": 3, "network": "conv2d", "hidden": [2, 3]}},
        shape=(8, 7),
    ),
}}
globals().update(contract(CASES))
'''


@app.callback()
def new() -> None:
    """Begin a package that adds to fedlatent."""


@app.command(epilog="Examples: fedlatent new family shy | fedlatent new family shy --out packages")
def family(
    name: Annotated[str, typer.Argument(help="Of the family: lower-case letters and digits.")],
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Make the package's folder here; default this folder."),
    ] = None,
) -> None:
    """Write a package with a family of models that passes the contract from the start."""
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.models import FAMILIES

    if not re.fullmatch("[a-z][a-z0-9]{0,30}", name):
        raise ConfigError(
            f"Expected a name of lower-case letters and digits, got {name!r}; choose another.",
            field="name",
        )
    if name in FAMILIES:
        raise ConfigError(
            f"Expected a name that no family has, got {name!r}; choose another.", field="name"
        )
    place = (folder or Path()) / f"fedlatent-{name}"
    if place.exists():
        raise ConfigError(f"Expected no folder {place}, got one; choose another name or place.")
    module, title = f"fedlatent_{name}", name.capitalize()
    words = {"name": name, "module": module, "title": title}
    (place / "tests").mkdir(parents=True)
    (place / "pyproject.toml").write_text(_PROJECT.format(**words), encoding="utf-8")
    (place / f"{module}.py").write_text(_MODULE.format(**words), encoding="utf-8")
    (place / "tests" / f"test_{name}.py").write_text(_TEST.format(**words), encoding="utf-8")
    out.print(f"package made in {place}")
    line = f"pip install --editable {place} && python -m pytest {place}"
    out.print(styled("bold", line, before="next: "))
