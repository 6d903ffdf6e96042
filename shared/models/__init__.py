"""Model families behind one seam; `FAMILIES` is the only table of names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.column import Column, layout
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.base import VAE, Terms, encoder_state, load_encoder, load_state
from fedlatent.shared.models.denoising import PRESETS as DENOISING_PRESETS
from fedlatent.shared.models.denoising import DenoisingConfig, DenoisingVAE
from fedlatent.shared.models.diffusion import PRESETS as DIFFUSION_PRESETS
from fedlatent.shared.models.diffusion import DiffusionConfig, LatentDiffusion
from fedlatent.shared.models.gaussian import PRESETS as GAUSSIAN_PRESETS
from fedlatent.shared.models.gaussian import GaussianConfig, GaussianVAE
from fedlatent.shared.models.gumbel import PRESETS as GUMBEL_PRESETS
from fedlatent.shared.models.gumbel import GumbelConfig, GumbelVAE
from fedlatent.shared.models.hierarchical import PRESETS as HIERARCHICAL_PRESETS
from fedlatent.shared.models.hierarchical import HierarchicalVAE
from fedlatent.shared.models.mixed import PRESETS as MIXED_PRESETS
from fedlatent.shared.models.mixed import MixedConfig, MixedVAE
from fedlatent.shared.models.molecule import PRESETS as MOLECULE_PRESETS
from fedlatent.shared.models.molecule import MoleculeConfig, MoleculeVAE
from fedlatent.shared.models.networks import wrong_option
from fedlatent.shared.models.patches import SequenceConfig
from fedlatent.shared.models.sequence import PRESETS as SEQUENCE_PRESETS
from fedlatent.shared.models.sequence import SequenceVAE
from fedlatent.shared.models.sparse import PRESETS as SPARSE_PRESETS
from fedlatent.shared.models.sparse import SparseConfig, SparseVAE
from fedlatent.shared.models.topdown import HierarchicalConfig
from fedlatent.shared.models.vq import PRESETS as VQ_PRESETS
from fedlatent.shared.models.vq import VQVAE, VQConfig
from fedlatent.shared.plugins import PluginTable

__all__ = [
    "FAMILIES",
    "VAE",
    "Family",
    "GaussianConfig",
    "GaussianVAE",
    "Terms",
    "build",
    "build_model",
    "encoder_state",
    "load_encoder",
    "load_state",
]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model.

    Attributes:
        about: What it is for, in one line.
        config: Its options.
        model: Made from options, a record shape and a generator.
        presets: Options by size: "tiny", "small", "base".
        of_columns: Options that follow from the columns of a table; by default none do.
    """

    about: str
    config: type[Any]
    model: Callable[[Any, tuple[int, ...], torch.Generator], VAE]
    presets: Mapping[str, Mapping[str, object]]
    of_columns: Callable[[Sequence[Column]], Mapping[str, object]] = lambda columns: {}


_OWN: dict[str, Family] = {
    "gaussian": Family(
        about="autoencoder, VAE and beta-VAE: vectors, signals, images",
        config=GaussianConfig,
        model=GaussianVAE,
        presets=GAUSSIAN_PRESETS,
    ),
    "diffusion": Family(
        about="latent diffusion: new records from sharp latents",
        config=DiffusionConfig,
        model=LatentDiffusion,
        presets=DIFFUSION_PRESETS,
    ),
    "denoising": Family(
        about="clean signals and images out of corrupted ones, at a known level",
        config=DenoisingConfig,
        model=DenoisingVAE,
        presets=DENOISING_PRESETS,
    ),
    "gumbel": Family(
        about="VAE with categorical latents: groups, switches, classes",
        config=GumbelConfig,
        model=GumbelVAE,
        presets=GUMBEL_PRESETS,
    ),
    "hierarchical": Family(
        about="deep ladder of latent groups: images and densities, best likelihoods",
        config=HierarchicalConfig,
        model=HierarchicalVAE,
        presets=HIERARCHICAL_PRESETS,
    ),
    "mixed": Family(
        about="tables of numbers and classes with missing values",
        config=MixedConfig,
        model=MixedVAE,
        presets=MIXED_PRESETS,
        of_columns=lambda columns: {"columns": layout(columns)} if columns else {},
    ),
    "molecule": Family(
        about="molecules as tokens of a grammar, written by a recurrent decoder",
        config=MoleculeConfig,
        model=MoleculeVAE,
        presets=MOLECULE_PRESETS,
    ),
    "sequence": Family(
        about="recurrent latents: forecasts with intervals, streams, missing values",
        config=SequenceConfig,
        model=SequenceVAE,
        presets=SEQUENCE_PRESETS,
    ),
    "sparse": Family(
        about="encoder with an early exit: little work for easy records at the edge",
        config=SparseConfig,
        model=SparseVAE,
        presets=SPARSE_PRESETS,
    ),
    "vq": Family(
        about="discrete codes with an autoregressive prior: tokens of images and signals",
        config=VQConfig,
        model=VQVAE,
        presets=VQ_PRESETS,
    ),
}


def _wrong(_: str, value: object) -> str | None:
    """Why a plugin's family may not stand in the table."""
    if not isinstance(value, Family):
        return f"expected a Family, got a {type(value).__name__}"
    if not isinstance(value.config, type) or not is_dataclass(value.config):
        return f"expected a dataclass as its config, got {value.config!r}"
    if not callable(value.model) or not isinstance(value.presets, Mapping):
        return "expected a model that can be made and presets by name, got others"
    return None


#: By name: ours, and those of plugins.
FAMILIES: PluginTable[Family] = PluginTable("families", _OWN, _wrong)


def build(
    family: str, options: Mapping[str, object], input_shape: tuple[int, ...], seed: int
) -> VAE:
    """Build a model with freshly drawn float32 weights.

    Equal arguments give equal weights; torch's global generator is neither read nor moved.

    Args:
        family: A key of `FAMILIES`.
        options: Fields of the family's configuration, a list standing for a tuple, as from JSON;
            `preset` may name one of the family's sizes, which the other options change.
        input_shape: Shape of one record.
        seed: Of the initial weights.

    Raises:
        ConfigError: The family or an option is unknown, or a value is out of range.
    """
    if family not in FAMILIES:
        raise ConfigError(
            f"Expected a model family out of {sorted(FAMILIES)}, got {family!r}; choose one.",
            field="model.family",
        )
    if not input_shape or any(size < 1 for size in input_shape):
        raise ConfigError(
            f"Expected a record shape of positive sizes, got {input_shape}; correct the schema.",
            field="data.shape",
        )
    chosen = FAMILIES[family]
    allowed = sorted(field.name for field in fields(chosen.config))
    sized = _with_preset(family, options)
    unknown = sorted(sized.keys() - set(allowed))
    if unknown:
        raise wrong_option(
            unknown[0],
            f"Expected options of family {family!r} out of {allowed}, got {unknown}; correct them.",
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in sized.items()}
    generator = torch.Generator().manual_seed(seed)
    return chosen.model(chosen.config(**values), tuple(input_shape), generator)


def build_model(run: RunConfig) -> VAE:
    """The model of a run with its first weights, which all its nodes and its server share.

    Raises:
        ConfigError: As `build`.
    """
    family, options = FAMILIES.get(run.model.family), dict[str, object](run.model.options)
    if family is not None:
        options = {**family.of_columns(run.data.columns), **options}
    return build(run.model.family, options, run.data.shape, run.seed)


def _with_preset(family: str, options: Mapping[str, object]) -> dict[str, object]:
    """Options with those of the preset they name, if any."""
    rest = dict(options)
    name = rest.pop("preset", None)
    presets = FAMILIES[family].presets
    if name is None:
        return rest
    if not isinstance(name, str) or name not in presets:
        raise wrong_option(
            "preset",
            f"Expected a preset of family {family!r} out of {sorted(presets)}, got {name!r}; "
            "choose one.",
        )
    return {**presets[name], **rest}
