"""Exports of models cost tests less: torch reads its tables of operators once, not at each export.

What is kept depends on the operators that are registered, and nothing here registers any.
"""

import functools
import sys


def keep_tables() -> None:
    """Let torch keep its tables, once anything has loaded our export."""
    if "fedlatent.shared.export.onnx" in sys.modules:
        _keep()


@functools.cache
def _keep() -> None:
    try:
        from torch._export import utils
        from torch.onnx._internal.exporter import _registration

        materialize = utils._materialize_cpp_cia_ops
        registry = _registration.ONNXRegistry
        build = registry.from_torchlib
    except (ImportError, AttributeError):
        return  # another torch: exports take their time
    utils._materialize_cpp_cia_ops = functools.cache(materialize)

    @functools.cache
    def from_torchlib(**options: int) -> _registration.ONNXRegistry:
        return build(**options)

    registry.from_torchlib = staticmethod(from_torchlib)
