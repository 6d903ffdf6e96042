"""The parity check finds what it is there to find."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fedlatent.shared.errors import BundleError
from fedlatent.shared.export import Encoder, parity
from tests.shared.export.conftest import Exported


def edited(data: bytes, change: float) -> bytes:
    """The graph with `change` added to one weight of its first matrix, on a pixel in use."""
    proto = onnx.load_from_string(data)
    matrix = next(item for item in proto.graph.initializer if len(item.dims) == 2)
    values = numpy_helper.to_array(matrix).copy()
    values[16, 28] += change
    matrix.CopyFrom(numpy_helper.from_array(values, matrix.name))
    return proto.SerializeToString()


def test_equal_models_pass_and_report(small: Exported) -> None:
    """The report counts the cases and gives the largest differences seen."""
    report = parity(small.encoder, Encoder(small.model), {"x": small.records[:10]})
    assert report.cases == 9  # 1, 3, 10 and 64 records, three extremes, two beyond
    assert 0 <= report.max_abs < 1e-4
    assert report.max_rel <= report.max_abs


@pytest.mark.parametrize("change", [1e-2, -3.0])
def test_one_changed_weight_is_found(small: Exported, change: float) -> None:
    """One weight that differs makes the check fail."""
    with pytest.raises(BundleError, match="within 1e-05"):
        parity(edited(small.encoder, change), Encoder(small.model), {"x": small.records})


@pytest.mark.parametrize("change", [np.nan, np.inf])
def test_values_that_are_not_finite_are_found(small: Exported, change: float) -> None:
    """A graph that gives NaN or infinity fails, however close the rest is."""
    with pytest.raises(BundleError, match="finite"):
        parity(edited(small.encoder, change), Encoder(small.model), {"x": small.records})


def test_another_graph_is_found(small: Exported) -> None:
    """A graph with other inputs than promised is a programming error."""
    with pytest.raises(ValueError, match="Expected inputs"):
        parity(small.decoder, Encoder(small.model), {"x": small.records})


def test_no_records_is_an_error(small: Exported) -> None:
    """Parity on nothing proves nothing."""
    with pytest.raises(ValueError, match="records"):
        parity(small.encoder, Encoder(small.model), {"x": small.records[:0]})


def test_module_keeps_its_mode(small: Exported) -> None:
    """The check leaves the module in the mode it was in."""
    module = Encoder(small.model).train()
    parity(small.encoder, module, {"x": small.records[:3]}, ())
    assert module.training
