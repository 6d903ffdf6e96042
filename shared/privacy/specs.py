"""What each summary phase of a run releases; server and nodes derive it alike."""

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import feature_basis
from fedlatent.shared.data.scaling import features_of
from fedlatent.shared.detection.parts import score_names
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.summaries import Form, SummarySpec
from fedlatent.shared.schedule import Kind


def spec_of(
    run: RunConfig, kind: Kind, form: Form, latent_dim: int, components: int
) -> SummarySpec:
    """What a client releases in a summary phase; both sides derive it.

    Args:
        run: the run.
        kind: of the phase.
        form: of moments.
        latent_dim: of the model.
        components: of the mixture that the phase brings.
    """
    if kind == "data":
        if run.summaries.data == "scaling":
            return summaries.scaling_spec(features_of(run.data))
        return summaries.moments_spec(len(feature_basis(run)))
    if kind == "moments":
        full = form == "full"
        return summaries.moments_spec(latent_dim) if full else summaries.diagonal_spec(latent_dim)
    if kind == "mixture":
        return summaries.mixture_spec(components, latent_dim)
    if kind == "scores":
        return summaries.moments_spec(len(score_names(run)))
    return summaries.threshold_spec(3 if run.scoring.combined else 2)


def latent_radius(run: RunConfig, latent_dim: int) -> float:
    """The public radius that latents are clipped to."""
    return run.scoring.radius or summaries.default_radius(latent_dim)
