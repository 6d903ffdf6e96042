"""Negative controls: mechanisms broken on purpose, whose claim the same attacks must disprove.

An audit that finds nothing is worth something only if it finds these. Their bound makes no
assumption about noise.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of
from fedlatent.shared.privacy.audit import dp_lower_bound
from fedlatent.simulations.audit.results import Finding, Watch
from fedlatent.simulations.audit.unit import CLIP, DELTA, Draws, claimed, one_step_plan, step_draws

#: Of the broken training steps; their claim is an epsilon of about 1.
SIGMA = 3.73
_HUGE = 1e6  # a clip that clips nothing

#: The linear autoencoder: steps, records, their size, latent size.
_STEPS, _RECORDS, _SIZE, _LATENT = 4, 60, 8, 2
#: Its noise multiplier, learning rate, size of the canary and ridge of the decoder.
_TOY_SIGMA, _RATE, _CANARY, _RIDGE = 9.7, 0.002, 20.0, 1e-3
_BATCH = 500  # runs of the autoencoder computed together


def control_findings(step_count: int, toy_count: int, seed: int, watch: Watch) -> Iterator[Finding]:
    """All controls.

    Args:
        step_count: draws of a broken training step in each world.
        toy_count: trainings of the linear autoencoder in each world.
        seed: of all draws.
        watch: told about progress.
    """
    plan = one_step_plan(SIGMA)
    # The trainer adds noise of deviation noise_multiplier * clip: here the same as in ``plan``.
    unclipped = dataclasses.replace(plan, clip=_HUGE, noise_multiplier=SIGMA * CLIP / _HUGE)
    broken = {
        "noise off": dataclasses.replace(plan, noise_multiplier=0.0),
        "clipping off": unclipped,
    }
    for name, wrong in broken.items():
        yield _control(
            name,
            claimed(plan, "train"),
            step_draws(name, wrong, step_count, seed, watch),
            "projection on the canary's gradient",
        )
    name = "decoder without noise"
    yield _control(
        name,
        toy_claim(),
        toy_draws(toy_count, seed, private_decoder=False, watch=watch),
        "difference of mean encoders",
    )


def toy_finding(count: int, seed: int, watch: Watch) -> Finding:
    """The autoencoder of the last control with its decoder inside DP-SGD: nothing is found."""
    return Finding(
        name="decoder with noise",
        claimed=toy_claim(),
        lower=_bound(toy_draws(count, seed, private_decoder=True, watch=watch)),
        draws=2 * count,
        attack="difference of mean encoders",
    )


def toy_claim() -> float:
    """Epsilon by the ledger of the linear autoencoder's noisy steps."""
    return epsilon_of([GaussianEvent(noise_multiplier=_TOY_SIGMA, steps=_STEPS)], DELTA)


def toy_draws(count: int, seed: int, *, private_decoder: bool, watch: Watch) -> Draws:
    """Scores of the released encoder of a linear autoencoder, trained in turns.

    Before each DP-SGD step of the encoder the decoder is fitted to the raw records by least
    squares, or it takes part in the step with clipping and noise. The canary draws a fitted
    decoder to itself; then the gradients of all others point the same way, and the clipped sum
    that the noise is meant to hide moves by the number of records and not by one clip.

    The direction is the difference between the mean encoders of trainings that serve for nothing
    else.
    """
    name = "decoder with noise" if private_decoder else "decoder without noise"
    rng = np.random.default_rng((seed, private_decoder))
    records, canary = _toy_records(np.random.default_rng(seed))
    data = (np.vstack([records, canary]), np.vstack([records, 0.0 * canary]))
    worlds = []
    for world, rows in enumerate(data):
        parts = []
        for start in range(0, 2 * count, _BATCH):
            size = min(_BATCH, 2 * count - start)
            parts.append(_toy_encoders(rows, size, rng, private_decoder=private_decoder))
            watch(name, (world + start / (2 * count)) / 2)
        worlds.append(np.concatenate(parts))
    watch(name, 1.0)
    direction = worlds[0][:count].mean(axis=0) - worlds[1][:count].mean(axis=0)
    return Draws(with_=worlds[0][count:] @ direction, without=worlds[1][count:] @ direction)


def _toy_records(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Records [N, d] along one axis, and a canary [1, d] far out on another."""
    records = rng.normal(0, 0.1, (_RECORDS, _SIZE))
    records[:, 0] += rng.choice([-1.0, 1.0], _RECORDS)
    canary = np.zeros((1, _SIZE))
    canary[0, 1] = _CANARY
    return records, canary


def _toy_encoders(
    rows: np.ndarray, count: int, rng: np.random.Generator, *, private_decoder: bool
) -> np.ndarray:
    """Encoders [count, k * d] after all steps, each with noise of its own."""
    # Both axes have the same latent at first, so that the canary and the others share it.
    encoder = np.zeros((count, _LATENT, _SIZE))
    encoder[:, 0, :2] = 1.0
    encoder[:, 1, 2:] = 0.3
    decoder = encoder.swapaxes(1, 2).copy()
    present = (np.abs(rows).sum(axis=1) > 0).astype(float)
    for _ in range(_STEPS):
        latents = np.einsum("rkd,nd->rnk", encoder, rows)
        if not private_decoder:
            decoder = _least_squares(latents, rows)
        error = np.einsum("rdk,rnk->rnd", decoder, latents) - rows
        back = np.einsum("rdk,rnd->rnk", decoder, error)
        # Per-record gradients are outer products: their norms are products of norms.
        squares = (back**2).sum(-1) * (rows**2).sum(-1)
        if private_decoder:
            squares += (error**2).sum(-1) * (latents**2).sum(-1)
        scale = present * np.minimum(1.0, CLIP / np.maximum(np.sqrt(squares), 1e-12))
        encoder_sum = np.einsum("rnk,nd->rkd", scale[:, :, None] * back, rows, optimize=True)
        decoder_sum = np.einsum("rnd,rnk->rdk", scale[:, :, None] * error, latents, optimize=True)
        for weights, total in ((encoder, encoder_sum), (decoder, decoder_sum)):
            weights -= _RATE * (total + rng.normal(0, _TOY_SIGMA * CLIP, total.shape))
    return encoder.reshape(count, -1)


def _least_squares(latents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Decoders [r, d, k] that best reconstruct ``rows`` [n, d] from latents [r, n, k]."""
    k = latents.shape[-1]
    squares = np.einsum("rnk,rnl->rkl", latents, latents, optimize=True) + _RIDGE * np.eye(k)
    products = np.einsum("rnk,nd->rkd", latents, rows, optimize=True)
    return np.linalg.solve(squares, products).swapaxes(1, 2)


def _control(name: str, claim: float, scores: Draws, attack: str) -> Finding:
    return Finding(
        name=name,
        control=True,
        claimed=claim,
        lower=_bound(scores),
        draws=len(scores.with_) + len(scores.without),
        attack=attack,
    )


def _bound(scores: Draws) -> float:
    return dp_lower_bound(scores.with_, scores.without, DELTA)
