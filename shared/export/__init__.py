"""Models as self-contained ONNX files, and the proof that they compute what the model computes."""

from fedlatent.shared.export.onnx import (
    Decoder,
    Encoder,
    Scorer,
    export_decoder,
    export_encoder,
    export_graph,
    export_scorer,
    scorer_outputs,
)
from fedlatent.shared.export.parity import SCORER_TOLERANCE, ParityReport, parity, run_onnx

__all__ = [
    "SCORER_TOLERANCE",
    "Decoder",
    "Encoder",
    "ParityReport",
    "Scorer",
    "export_decoder",
    "export_encoder",
    "export_graph",
    "export_scorer",
    "parity",
    "run_onnx",
    "scorer_outputs",
]
