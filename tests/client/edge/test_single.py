from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedlatent.client.edge.single import SingleScorer, _Preparation
from fedlatent.shared.bundle.archive import SCORER
from fedlatent.shared.data.schema import Center, Schema
from fedlatent.shared.errors import BundleError, DataError
from tests.client.edge.conftest import Load
from tests.shared.bundle import tiny


@settings(max_examples=300, deadline=None)
@given(
    record=st.integers(1, 9).flatmap(
        lambda size: arrays(np.float64, size, elements=st.floats(-1e9, 1e9))
    ),
    center=st.sampled_from(["none", "median", "mean"]),
    scale=st.sampled_from([1.0, 1e-3, -0.7]),
)
def test_preparation_equals_the_schema(record: np.ndarray, center: Center, scale: float) -> None:
    """A single record is prepared exactly as a batch is."""
    schema = Schema(
        name="any", shape=record.shape, unit="", scale=scale, center=center, lower=-2.5, upper=2e5
    )
    target = np.zeros(schema.size, dtype=np.float32)
    _Preparation(schema, target)(record)
    np.testing.assert_array_equal(target, schema.preprocess(record[np.newaxis])[0])


def test_single_scores_equal_those_of_batches(load: Load) -> None:
    """Every record gets the score, flag and latents that it has in a batch, re-centred or not."""
    raw = tiny.raw_records(20)
    raw[3] *= 30
    for model in (load(), load().recentre(raw[:5]), load().calibrate(raw, 0.9)):
        table, single = model.score(raw), SingleScorer(model)
        for i, record in enumerate(raw):
            score, flag = single(record)
            assert score == pytest.approx(float(table.score[i]), rel=1e-6)
            assert flag == table.flag[i]
            assert single.clipped == table.clipped[i]
            np.testing.assert_allclose(single.mu, table.mu[i], rtol=1e-6)


def test_bad_single_records_are_refused_and_the_next_is_scored(load: Load) -> None:
    """A record of another shape or with NaN is a DataError and leaves nothing behind."""
    single, good = SingleScorer(load()), tiny.raw_records(1)[0].astype(float)
    expected = single(good)
    bad = [good[:3], np.full_like(good, np.nan), np.full_like(good, np.inf), good.astype(str)]
    for record in bad:
        with pytest.raises(DataError, match="Expected"):
            single(record)
        assert single(good) == expected


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_large_finite_record_is_not_mistaken_for_infinity(load: Load) -> None:
    """Values whose sum overflows, though each is finite, are clipped as in a batch."""
    schema = replace(tiny.SCHEMA, scale=1.0, center="none")
    record = np.full(tiny.DIM, 1e308)
    target = np.zeros(tiny.DIM, dtype=np.float32)
    _Preparation(schema, target)(record)
    np.testing.assert_array_equal(target, schema.preprocess(record[np.newaxis])[0])


def test_an_infinite_score_is_refused(load: Load) -> None:
    """A score that is not finite never becomes a flag."""
    model = load()
    broken = tiny.scorer(overflow=True)
    graphs = type(model.graphs).open(model.bundle.manifest, {**model.bundle.files, SCORER: broken})
    single = SingleScorer(replace(model, graphs=graphs))
    with pytest.raises(BundleError, match="finite score"):
        single(tiny.raw_records(1)[0])
