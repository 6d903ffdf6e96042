"""The table experiment in its quick form, and its comparison without a model."""

from pathlib import Path

import numpy as np

from fedlatent.simulations.zoo import columns


def test_quick_form(data_dir: Path) -> None:
    """It gives an AUROC for every model and score, and errors of what was hidden."""
    found = columns.experiment(data_dir, epsilon=None, seed=0, quick=True, watch=lambda _: None)
    assert columns.picture(found.pop("picture")).startswith(b"\x89PNG")
    disease = found["patients: AUROC of disease"]
    assert set(disease) == set(found["connections: AUROC of attacks"])
    assert {name.split(",")[0] for name in disease} == {"mixed", "gaussian", "PCA"}
    assert all(0.0 <= value <= 1.0 for cells in disease.values() for value in cells.values())
    hidden = found["patients: hidden values"]
    assert hidden.keys() == {"mixed", "gaussian", "mean or mode"}
    assert 0.05 < hidden["mean or mode"]["RMSE of numbers"] < 0.3


def test_vectors_fill_numbers_with_the_middle(data_dir: Path) -> None:
    """A vector has one value for a number, a half where it is missing, and the levels."""
    frame, rows = columns.patients(data_dir)
    vectors = columns.as_vector(rows, columns.HEART)
    widths = [len(column.levels) or 1 for column in columns.HEART]
    assert vectors.shape == (len(frame), sum(widths))
    cholesterol = vectors[:, sum(widths[:4])]
    unknown = frame["chol"].isna().to_numpy()
    assert unknown.sum() > 100
    np.testing.assert_array_equal(cholesterol[unknown], 0.5)
