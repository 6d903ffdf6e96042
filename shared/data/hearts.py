"""Synthetic heart beats: the dynamical model of McSharry, Clifford, Tarassenko and Smith (2003).

P. E. McSharry et al., "A dynamical model for generating synthetic electrocardiogram signals",
IEEE Transactions on Biomedical Engineering 50(3), 2003, equation 1. A point turns on a circle, once
per beat; at angle theta the trace z is pushed by Gaussian bumps, one per wave, and pulled back to a
wandering baseline:

    dz/dt = -sum_i a_i d_i exp(-d_i^2 / (2 b_i^2)) - (z - z0),   d_i = theta - theta_i

We take the point on the limit cycle, where theta is known from the RR intervals and the equation is
linear in z, and write a_i = A_i omega / b_i^2, so that A_i is the height of wave i in millivolt.
Every patient gets an own morphology, rate and noise. Ventricular ectopic beats (the anomalies) come
early, have no P wave, a wide QRS and an opposite T wave, and are followed by a long pause.

No real person's data went into this module; the beats have the form of the MIT-BIH extract
(128 samples at 180 Hz, R peak at index 48), so both can run under one schema.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 180
LENGTH = 128
R_INDEX = 48

#: Waves, in order: P, Q, R, S, two halves of T. Angles in rad at 60 beats a minute, R at 0.
WAVES = ("P", "Q", "R", "S", "T1", "T2")
_P, _Q, _R, _S, _T1, _T2 = range(6)
_LEAST_INTERVAL = 0.36  # s; the heart muscle cannot be excited sooner
_MOVEMENT_SHARE, _MOVEMENT_GAIN = 0.03, 8.0  # of the seconds; times the usual noise
_BASELINE_PULL = 1.0  # 1/s, the coefficient of (z - z0) in the model

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Morphology:
    """Waves of one kind of beat, one entry per wave of `WAVES`.

    Attributes:
        height: A_i in millivolt, signed.
        angle: theta_i in rad.
        width: b_i in rad.
    """

    height: Floats
    angle: Floats
    width: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Heart:
    """Everything that stays the same in one patient.

    Attributes:
        normal: Morphology of a normal beat.
        ectopic: Morphologies of the ventricular foci, one or two.
        interval: Mean RR interval in seconds.
        variability: Relative size of the slow and the respiratory change of RR.
        beat_jitter: Relative change of heights and widths from beat to beat.
        wander: Size of the baseline wander in millivolt.
        noise: Deviation of the muscle noise in millivolt.
    """

    normal: Morphology
    ectopic: tuple[Morphology, ...]
    interval: float
    variability: float
    beat_jitter: float
    wander: float
    noise: float


def patient(
    seed: int, beats: int, ectopic_fraction: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Simulate one patient.

    Args:
        seed: Which patient, and which stretch of that patient's life. Equal arguments give
            equal beats.
        beats: Number of beats, in time order.
        ectopic_fraction: Chance that a beat is ventricular; two never follow each other, so at
            most one half.

    Returns:
        Beats in millivolt [beats, 128] at 180 Hz with the R peak at index 48, and labels [beats]:
        0 normal, 1 ventricular ectopic.

    Raises:
        ValueError: If `beats` is negative or `ectopic_fraction` lies outside [0, 0.5].
    """
    if beats < 0:
        raise ValueError(f"Expected a number of beats of at least 0, got {beats}.")
    if not 0.0 <= ectopic_fraction <= 0.5:
        raise ValueError(f"Expected ectopic_fraction in [0, 0.5], got {ectopic_fraction}.")
    if beats == 0:
        return np.empty((0, LENGTH)), np.empty(0, dtype=np.uint8)
    body, life = np.random.default_rng(seed).spawn(2)
    heart = draw_heart(body)
    kinds = _draw_kinds(beats, ectopic_fraction, len(heart.ectopic), life)
    intervals = _draw_intervals(kinds, heart, life)
    trace = _trace(kinds, intervals, heart, life)
    first = np.rint(np.cumsum(intervals)[:beats] * RATE_HZ).astype(np.int64) - R_INDEX
    windows = trace[first[:, None] + np.arange(LENGTH)]
    return windows, (kinds[1:-2] > 0).astype(np.uint8)


def draw_heart(rng: np.random.Generator) -> Heart:
    """Draw a patient: a morphology, ectopic foci, a rate, a baseline and a noise level."""
    width = np.array([0.24, 0.07, 0.09, 0.08, 0.40, 0.22]) * rng.lognormal(0.0, 0.2, 6)
    height = np.array(
        [
            rng.uniform(0.03, 0.22),
            -rng.uniform(0.0, 0.25),
            rng.uniform(0.5, 2.3),
            -rng.gamma(1.3, 0.35),
            0.0,
            rng.normal(0.3, 0.25),
        ]
    )
    s_angle = 0.24
    if rng.random() < 0.25:  # a bundle branch block: the QRS is broad, late forces of either sign
        width[_Q : _S + 1] *= rng.uniform(1.3, 2.0)
        s_angle *= rng.uniform(1.3, 2.0)
        height[_S] = rng.uniform(0.2, 0.7) * height[_R] * rng.choice([1.0, -1.0])
        height[_T2] = -np.sign(height[_S]) * rng.uniform(0.1, 0.5)
    if rng.random() < 0.1:  # a QRS that points down, as with another axis of the heart
        height[_Q : _S + 1] *= -0.8
    height[_T1] = rng.uniform(0.2, 0.8) * height[_T2]
    t_angle = rng.uniform(1.35, 2.1)
    angle = np.array([-1.1, -0.22, 0.0, s_angle, t_angle - 0.35, t_angle])
    angle += rng.normal(0.0, 0.03, 6) * np.array([3.0, 1.0, 0.0, 1.0, 2.0, 2.0])
    normal = Morphology(height=height, angle=angle, width=width)
    return Heart(
        normal=normal,
        ectopic=tuple(_draw_ectopic(normal, rng) for _ in range(rng.integers(1, 3))),
        interval=rng.uniform(0.65, 1.05),
        variability=rng.uniform(0.01, 0.06),
        beat_jitter=rng.uniform(0.03, 0.12),
        wander=rng.lognormal(np.log(0.1), 0.5),
        noise=rng.lognormal(np.log(0.02), 0.5),
    )


def _draw_ectopic(normal: Morphology, rng: np.random.Generator) -> Morphology:
    """Draw a ventricular focus: no P, a wide QRS of either sign, T against it."""
    main = (0.4 + abs(normal.height[_R])) * rng.uniform(0.6, 1.2)
    main *= np.sign(normal.height[_R]) * rng.choice([1.0, -1.0], p=[0.6, 0.4])
    stretch = rng.uniform(1.3, 2.3)
    width = normal.width.copy()
    width[_Q : _S + 1] = np.array([0.10, 0.12, 0.13]) * stretch
    width[_T1:] = np.array([0.40, 0.30]) * rng.uniform(0.9, 1.3)
    height = np.array([0.0, rng.uniform(-0.1, 0.3), 1.0, rng.uniform(-0.4, 0.4), -0.2, -0.35])
    height *= main
    height[_T1:] *= rng.uniform(0.5, 1.3)
    angle = normal.angle.copy()
    angle[_Q], angle[_S] = -0.18 * stretch, 0.2 * stretch
    angle[_T1:] += 0.15
    return Morphology(height=height, angle=angle, width=width)


def _draw_kinds(
    beats: int, fraction: float, foci: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw 0 (normal) or the number of a focus for each beat, and normal beats around: 1 and 2."""
    kinds = np.zeros(beats + 3, dtype=np.int64)
    # After a normal beat the chance is p / (1 - p), so that the overall share is p.
    chance = fraction / (1.0 - fraction)
    draws, focus = rng.random(beats), rng.integers(1, foci + 1, beats)
    for i in range(beats):
        if kinds[i] == 0 and draws[i] < chance:
            kinds[i + 1] = focus[i]
    return kinds


def _draw_intervals(kinds: NDArray[np.int64], heart: Heart, rng: np.random.Generator) -> Floats:
    """Draw seconds from each beat to the next: slow and respiratory rhythm, early ectopics."""
    beat = np.arange(len(kinds) - 1)
    slow = np.sin(2 * np.pi * 0.1 * heart.interval * beat + rng.uniform(0, 2 * np.pi))
    breath = np.sin(2 * np.pi * 0.25 * heart.interval * beat + rng.uniform(0, 2 * np.pi))
    relative = heart.variability * (slow + breath + 0.7 * rng.normal(size=len(beat)))
    intervals = heart.interval * np.exp(relative)
    ectopic = np.flatnonzero(kinds)
    saved = intervals[ectopic - 1] * rng.uniform(0.1, 0.38, len(ectopic))
    intervals[ectopic - 1] -= saved
    intervals[ectopic] += saved  # the compensatory pause
    return np.asarray(np.maximum(intervals, _LEAST_INTERVAL))


def _trace(
    kinds: NDArray[np.int64], intervals: Floats, heart: Heart, rng: np.random.Generator
) -> Floats:
    """Solve the model from the first R peak to the last; millivolt at `RATE_HZ`."""
    peaks = np.concatenate([[0.0], np.cumsum(intervals)])
    time = np.arange(int(peaks[-1] * RATE_HZ)) / RATE_HZ
    turns = np.interp(time, peaks, np.arange(len(peaks)))
    beat = np.rint(turns).astype(np.int64)
    seconds = intervals[turns.astype(np.int64)]  # the RR interval around each moment
    height, angle, width = _beat_waves(kinds, heart, rng)
    push = np.zeros(len(time))
    for wave in range(len(WAVES)):
        # Angles are given at one beat a second. The QRS takes the same time at every rate; the
        # times of P and T go with the square root of RR (Bazett's rule, 1920).
        pace = seconds if wave in (_Q, _R, _S) else np.sqrt(seconds)
        offset = 2 * np.pi * (turns - beat) * pace - angle[beat, wave]
        spread = width[beat, wave]
        omega = 2 * np.pi / seconds * pace
        push -= (
            height[beat, wave] * omega * offset / spread**2 * np.exp(-0.5 * (offset / spread) ** 2)
        )
    push += _BASELINE_PULL * _baseline(time, heart, rng)
    keep = float(np.exp(-_BASELINE_PULL / RATE_HZ))
    steps = itertools.accumulate((push / RATE_HZ).tolist(), lambda z, step: keep * z + step)
    trace: Floats = np.fromiter(steps, dtype=np.float64, count=len(time))
    return trace + heart.noise * _muscle(len(time), rng)


def _beat_waves(
    kinds: NDArray[np.int64], heart: Heart, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Return height, angle and width of every wave of every beat, each [beats, waves]."""
    forms = (heart.normal, *heart.ectopic)
    size = (len(kinds), len(WAVES))
    jitter = np.where(kinds > 0, 2.0, 1.0)[:, None] * heart.beat_jitter
    breath = np.sin(2 * np.pi * 0.25 * heart.interval * np.arange(len(kinds)))[:, None]
    height = np.stack([form.height for form in forms])[kinds]
    height = height * (1.0 + jitter * (breath + rng.normal(size=size)))
    width = np.stack([form.width for form in forms])[kinds]
    width = width * np.exp(0.5 * jitter * rng.normal(size=size))
    angle = np.stack([form.angle for form in forms])[kinds]
    angle = angle + 0.2 * jitter * rng.normal(size=size) * (np.arange(len(WAVES)) != _R)
    return height, angle, width


def _baseline(time: Floats, heart: Heart, rng: np.random.Generator) -> Floats:
    """Draw the slow drift z0(t) in millivolt: breathing and two slower waves."""
    total = np.zeros(len(time))
    for frequency in (0.25, 0.11, 0.04):
        phase = rng.uniform(0, 2 * np.pi)
        total += np.sin(2 * np.pi * frequency * rng.uniform(0.8, 1.2) * time + phase)
    return heart.wander * total


def _muscle(length: int, rng: np.random.Generator) -> Floats:
    """Draw noise of unit deviation, smooth over two samples, with rare seconds of movement."""
    white = rng.normal(size=length + 1)
    moving = rng.random(length // RATE_HZ + 1) < _MOVEMENT_SHARE
    level = np.where(np.repeat(moving, RATE_HZ)[:length], _MOVEMENT_GAIN, 1.0)
    return np.asarray(level * (white[1:] + 0.7 * white[:-1]) / np.hypot(1.0, 0.7))
