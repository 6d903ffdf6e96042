"""What exported graphs compute, and what they must not contain."""

import getpass
import socket
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from fedlatent.shared.bundle.manifest import POSTERIOR
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export import (
    SCORER_TOLERANCE,
    Decoder,
    Encoder,
    Scorer,
    export_encoder,
    export_scorer,
    parity,
    run_onnx,
    scorer_outputs,
)
from fedlatent.shared.export.onnx import LATENT_PARTS
from fedlatent.shared.models import GaussianConfig, GaussianVAE
from fedlatent.shared.privacy.summaries import squared_distance
from tests.shared.export.conftest import Exported, exported


def center(export: Exported) -> np.ndarray:
    """The density's mean in float32."""
    return export.density.mean.astype(np.float32)


def test_encoder_parity(export: Exported) -> None:
    """The encoder graph equals the trained model on real records and extremes."""
    report = parity(export.encoder, Encoder(export.model), {"x": export.records}, (0.0, 1.0))
    assert report.max_rel <= 1e-5
    assert report.cases == 8


def test_decoder_parity(export: Exported) -> None:
    """The decoder graph equals the trained model on the latents of real records and extremes."""
    z = run_onnx(export.encoder, {"x": export.records})["mu"]
    assert parity(export.decoder, Decoder(export.model), {"z": z}).max_rel <= 1e-5


def test_scorer_parity(export: Exported) -> None:
    """The scorer graph equals the trained model for the density's center and for a local one."""
    module = Scorer(export.model, export.density, with_decoder=True, combine=export.combine)
    for used in (center(export), center(export) + 0.7):
        report = parity(
            export.scorer,
            module,
            {"x": export.records},
            (0.0, 1.0),
            fixed={"center": used},
            tolerance=SCORER_TOLERANCE,
        )
        assert report.max_rel <= 1e-5


def test_scores_mean_what_they_say(export: Exported) -> None:
    """Every output equals its definition, computed from the latents in numpy."""
    x, used = export.records[:50], center(export) + 0.3
    latent = run_onnx(export.encoder, {"x": x})
    got = run_onnx(export.scorer, {"x": x, "center": used})
    mu = latent["mu"].astype(np.float64)
    assert tuple(got) == (*POSTERIOR, *scorer_outputs(with_decoder=True))
    for name in POSTERIOR:
        np.testing.assert_allclose(got[name], latent[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["latent_norm"], (mu**2).sum(1), rtol=1e-5)
    for name, recentred in (("latent_distance", False), ("recentred_distance", True)):
        precision = export.density.precision(recentred=recentred)
        expected = squared_distance(mu, used, precision)
        np.testing.assert_allclose(got[name], expected, rtol=1e-4)
    np.testing.assert_allclose(got["posterior_logvar"], latent["logvar"].sum(1), rtol=1e-5)
    np.testing.assert_allclose(got["score"], export.combine(got), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        decoded = export.model.decode(torch.from_numpy(latent["mu"]))
        error = export.model.reconstruction_error(torch.from_numpy(x), decoded).numpy()
    np.testing.assert_allclose(got["reconstruction_error"], error, rtol=1e-5)


def test_reconstruction_is_in_data_space(export: Exported) -> None:
    """The decoder graph returns records closer to their own originals than to others'."""
    mu = run_onnx(export.encoder, {"x": export.records})["mu"]
    mean = run_onnx(export.decoder, {"z": mu})["reconstruction"]
    assert mean.shape == export.records.shape
    others = np.roll(export.records, 1, axis=0)
    assert ((export.records - mean) ** 2).mean() < ((others - mean) ** 2).mean()


def test_graphs_are_plain(export: Exported) -> None:
    """Graphs are valid opset 20 with a dynamic batch, float32 and the promised names."""
    for data, inputs in (
        (export.encoder, {"x": ["batch", *export.model.input_shape]}),
        (export.decoder, {"z": ["batch", 4]}),
        (export.scorer, {"x": ["batch", *export.model.input_shape], "center": [4]}),
    ):
        proto = onnx.load_from_string(data)
        assert [item.version for item in proto.opset_import] == [20]
        shapes = {
            item.name: [d.dim_param or d.dim_value for d in item.type.tensor_type.shape.dim]
            for item in proto.graph.input
        }
        assert shapes == inputs
        for item in (*proto.graph.input, *proto.graph.output):
            assert item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_nothing_of_this_machine_remains(export: Exported) -> None:
    """No path, source line, host or user name of the exporting machine is in the bytes."""
    machine = {str(Path(__file__).parents[3]), str(Path.home()), socket.gethostname()}
    words = {word for word in {*machine, getpass.getuser()} if len(word) > 4}
    words |= {".py", "site-packages", "stack_trace", "torch.nn", "self.", "shared", "GaussianVAE"}
    for data in (export.encoder, export.decoder, export.scorer):
        proto = onnx.load_from_string(data)
        assert not proto.metadata_props
        assert not proto.doc_string
        assert not proto.graph.value_info
        for node in proto.graph.node:
            assert not node.metadata_props
            assert not node.doc_string
        for tensor in proto.graph.initializer:
            assert tensor.data_location == onnx.TensorProto.DEFAULT
            tensor.ClearField("raw_data")  # weights may spell anything
        assert not [word for word in words if word.encode() in proto.SerializeToString()]


def test_encoder_and_global_scorer_hold_no_decoder(small: Exported) -> None:
    """Neither names nor weights of the decoder are in what leaves without it."""
    scorer = export_scorer(Scorer(small.model, small.density))
    outputs = [item.name for item in onnx.load_from_string(scorer).graph.output]
    assert outputs == [*POSTERIOR, *scorer_outputs(with_decoder=False)]
    assert "reconstruction_error" not in outputs
    for data in (small.encoder, scorer):
        assert b"decoder" not in data
        for parameter in small.model.decoder.parameters():
            if parameter.dim() > 1:
                assert parameter.detach().numpy().tobytes() not in data
    fed = {"x": small.records[:5], "center": center(small)}
    full = run_onnx(small.scorer, fed)
    alone = run_onnx(scorer, fed)
    np.testing.assert_array_equal(alone["score"], alone["latent_distance"])
    for name in LATENT_PARTS:
        np.testing.assert_allclose(alone[name], full[name], rtol=1e-6)


def test_export_is_reproducible(small: Exported) -> None:
    """Equal weights give equal bytes, whatever the model's mode and dtype, and stay untouched."""
    model = small.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    assert export_encoder(model) == small.encoder
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_scores_do_not_depend_on_the_batch(export: Exported) -> None:
    """A record's scores are those it has alone, to rounding."""
    fixed = {"center": center(export)}
    together = run_onnx(export.scorer, {"x": export.records[:7], **fixed})
    for index in range(7):
        alone = run_onnx(export.scorer, {"x": export.records[index : index + 1], **fixed})
        for name, value in alone.items():
            np.testing.assert_allclose(value[0], together[name][index], rtol=1e-5, atol=1e-5)


def test_large_logits_stay_exact() -> None:
    """A Bernoulli score stays finite and equal to torch's where logits reach hundreds."""
    export = exported("conv1d")
    model = GaussianVAE(export.model.config, export.model.input_shape, torch.Generator())
    model.load_state_dict(export.model.state_dict())
    with torch.no_grad():
        for parameter in list(model.decoder.parameters())[-2:]:
            parameter.mul_(200.0)
        x = torch.from_numpy(export.records)
        logits = model.decode(model.encode(x)[0])
    assert logits.min() < -200
    assert logits.max() > 100
    data = export_scorer(Scorer(model, export.density, with_decoder=True))
    module = Scorer(model, export.density, with_decoder=True)
    fixed = {"center": center(export)}
    assert parity(data, module, {"x": export.records}, fixed=fixed).max_rel <= 1e-5


class _Sampling(GaussianVAE):
    """A model that breaks the rule: it draws inside."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior with a random mean."""
        mu, logvar = super().encode(x)
        return mu + torch.randn_like(mu), logvar


def test_random_graphs_are_refused() -> None:
    """A model that draws random numbers inside cannot be exported."""
    model = _Sampling(GaussianConfig(hidden=(4,)), (6,), torch.Generator())
    with pytest.raises(BundleError, match="RandomNormalLike"):
        export_encoder(model)


def test_unknown_parts_are_refused(small: Exported) -> None:
    """A combination cannot name the reconstruction error of a graph without a decoder."""
    with pytest.raises(ValueError, match="reconstruction_error"):
        export_scorer(Scorer(small.model, small.density, combine=small.combine))
