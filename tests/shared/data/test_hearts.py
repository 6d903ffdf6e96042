"""Synthetic hearts look like beats, differ between patients and hold findable anomalies."""

import time

import numpy as np
import pytest

from fedlatent.shared.data.hearts import LENGTH, R_INDEX, RATE_HZ, draw_heart, patient


def half_width(beat: np.ndarray) -> int:
    """Count samples around the R peak that stay beyond half of its height."""
    height = beat - np.median(beat)
    beyond = height * np.sign(height[R_INDEX]) > 0.5 * abs(height[R_INDEX])
    left = int(np.argmin(beyond[R_INDEX::-1]))
    return left + int(np.argmin(beyond[R_INDEX:]))


def test_equal_arguments_give_equal_beats() -> None:
    """The seed fixes every value; another seed gives another patient."""
    first, label = patient(3, 50, 0.1)
    again, _ = patient(3, 50, 0.1)
    other, _ = patient(4, 50, 0.1)
    assert first.shape == (50, LENGTH)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.mean(0) - other.mean(0)).max() > 0.1


def test_heights_are_millivolts_with_the_peak_in_place() -> None:
    """In most patients the largest normal deflection is the QRS at the R index, 0.3 to 3 mV."""
    places, sizes = [], []
    for seed in range(20):
        beats, _ = patient(seed, 40)
        mean = beats.mean(0) - np.median(beats.mean(0))
        places.append(abs(int(np.abs(mean).argmax()) - R_INDEX))
        sizes.append(np.abs(mean).max())
    assert np.median(places) <= 1
    assert np.mean(np.array(places) <= 0.1 * RATE_HZ) >= 0.8
    assert min(sizes) > 0.25
    assert max(sizes) < 4.0


def test_ectopic_beats_are_wider() -> None:
    """Ventricular beats have a broader QRS than the patient's normal beats."""
    wider = []
    for seed in range(12):
        beats, label = patient(seed, 300, 0.2)
        normal = np.median([half_width(b) for b in beats[label == 0]])
        ectopic = np.median([half_width(b) for b in beats[label == 1]])
        wider.append(ectopic / normal)
    assert np.median(wider) > 1.4


def test_share_of_ectopic_beats() -> None:
    """The share comes out as asked, no two follow each other, and zero means none."""
    for share in (0.05, 0.2, 0.5):
        _, label = patient(1, 4000, share)
        assert abs(label.mean() - share) < 0.025
        assert not np.any(label[1:] & label[:-1])
    assert patient(1, 100)[1].sum() == 0


def test_patients_differ_more_than_their_beats() -> None:
    """Between patients the mean beats vary more than normal beats vary within a patient."""
    groups = [patient(seed, 60)[0] for seed in range(15)]
    groups = [g - np.median(g, axis=1, keepdims=True) for g in groups]
    within = np.mean([g.var(axis=0).sum() for g in groups])
    between = np.var([g.mean(axis=0) for g in groups], axis=0).sum()
    assert between > 2.0 * within


def test_thousand_beats_are_fast() -> None:
    """A thousand beats take less than a second."""
    start = time.process_time()
    patient(0, 1000, 0.1)
    assert time.process_time() - start < 1.0


def test_many_hearts_are_finite() -> None:
    """Extreme draws still give finite beats and plausible rates."""
    for seed in range(60):
        beats, _ = patient(seed, 12, 0.5)
        assert np.isfinite(beats).all()
        assert 0.6 < draw_heart(np.random.default_rng(seed)).interval < 1.1


def test_empty_and_wrong_arguments() -> None:
    """No beats is an empty array; a negative number or an impossible share is an error."""
    beats, label = patient(0, 0)
    assert beats.shape == (0, LENGTH)
    assert label.shape == (0,)
    with pytest.raises(ValueError, match="beats"):
        patient(0, -1)
    with pytest.raises(ValueError, match="ectopic_fraction"):
        patient(0, 5, 0.6)
