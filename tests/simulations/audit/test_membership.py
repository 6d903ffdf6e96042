"""Membership and inversion on what a usual run releases."""

import numpy as np

from fedlatent.simulations.audit.inversion import PUBLIC, RELEASED, STOLEN, STOLEN_OTHERS, Quality
from fedlatent.simulations.audit.run import USUAL_EPSILON, Audit


def test_membership_stays_within_what_epsilon_allows(audit: Audit) -> None:
    """Sure hits stay below e^epsilon * false positives + delta, and AUROC near guessing."""
    found = audit.membership
    assert found.finding is not None
    assert USUAL_EPSILON * 0.999 < found.finding.claimed <= USUAL_EPSILON
    assert found.finding.lower < found.finding.claimed
    for one in found.hits:
        assert one.surely <= one.allowed
    assert found.hits[0].allowed < 1  # else the line above says nothing
    low, high = found.interval
    assert low < 0.55
    assert high > 0.45
    assert high - low < 0.15


def test_a_latent_says_much_and_a_release_little(audit: Audit) -> None:
    """A stolen latent shows its beat; noise blurs the typical beat that released moments show."""
    private, plain = audit.inversion.qualities, audit.inversion_plain.qualities
    assert private[STOLEN].error < 0.8 * private[PUBLIC].error
    assert private[RELEASED].correlation < private[STOLEN].correlation
    assert plain[RELEASED].error < 0.8 * private[RELEASED].error


def test_training_records_are_recovered_no_better_than_others(audit: Audit) -> None:
    """The encoder has learnt no record by heart: held-out ones come back as well."""
    private = audit.inversion.qualities
    assert abs(private[STOLEN].correlation - private[STOLEN_OTHERS].correlation) < 0.03


def test_quality_of_known_recoveries() -> None:
    """A shifted record keeps its correlation and has the shift's error."""
    records = np.random.default_rng(0).normal(size=(5, 30))
    assert Quality.of(records, records).correlation > 0.999999
    assert Quality.of(records, records).error == 0.0
    shifted = Quality.of(records + 0.5, records)
    assert abs(shifted.error - 0.5) < 1e-9
    assert shifted.correlation > 0.999999
    assert Quality.of(-records, records).correlation < -0.999999
