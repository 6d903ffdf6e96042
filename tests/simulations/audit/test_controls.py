"""Negative controls: what is broken on purpose must be caught."""

from fedlatent.simulations.audit.controls import toy_claim
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.audit.run import Audit


def named(audit: Audit, name: str) -> Finding:
    """The finding of that name."""
    (found,) = [one for one in (*audit.claims, *audit.controls) if one.name == name]
    return found


def test_every_control_is_caught(audit: Audit) -> None:
    """Noise off, clipping off, a decoder on raw data and a noiseless run blow past their claims."""
    names = [one.name for one in audit.controls if not one.name.startswith("person")]
    assert names == [
        "noise off",
        "clipping off",
        "decoder without noise",
        "federated run, noise all but off",
    ]
    for one in audit.controls:
        assert one.verdict == "caught", one
        assert one.ratio > 1.5, one


def test_decoder_on_raw_data_voids_the_claim_and_noise_on_it_saves_it(audit: Audit) -> None:
    """Only the decoder's noise differs between the two: claimed 0.82, proven far above or 0."""
    assert 0.8 < toy_claim() < 0.84
    assert named(audit, "decoder without noise").lower > 3.5
    with_noise = named(audit, "decoder with noise")
    assert with_noise.lower < with_noise.claimed


def test_silent_control_fails_the_audit() -> None:
    """A control whose bound stays below the claim is reported, not passed over."""
    silent = Finding(name="x", control=True, claimed=1.0, lower=0.9, draws=1, attack="")
    assert silent.verdict == "SILENT"
    assert not silent.good
