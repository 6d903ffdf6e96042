"""What the sparse family promises beyond the contract."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export import export_encoder
from fedlatent.shared.models import build
from fedlatent.shared.models.sparse import SparseConfig, SparseVAE, trunk_share
from fedlatent.simulations.zoo.training import fit, run_for

OPTIONS: dict[str, object] = {"latent_dim": 3, "stem": 4, "hidden": [16]}


def small(**options: object) -> SparseVAE:
    """An untrained model of 12 values in float32."""
    model = build("sparse", {**OPTIONS, **options}, (12,), 0)
    assert isinstance(model, SparseVAE)
    return model.eval()


def values(count: int) -> torch.Tensor:
    """Records [count, 12] in float32."""
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(1))


def mixed(model: SparseVAE, x: torch.Tensor) -> torch.Tensor:
    """Set the threshold so that about half of the records are hard; return which [B]."""
    with torch.no_grad():
        gate = model.gate(x)
    model.threshold = float(gate.median()) + 1e-6
    hard = gate > model.threshold
    assert 0 < int(hard.sum()) < len(x)
    return hard


def test_every_record_takes_its_own_exit() -> None:
    """In a mixed batch hard records get the trunk's posterior, easy ones the cheap one."""
    model, x = small(), values(8)
    hard = mixed(model, x)
    with torch.no_grad():
        mu, _ = model.encode(x)
        cheap, deep = model.exits(x)
    torch.testing.assert_close(mu[hard], deep[hard])
    torch.testing.assert_close(mu[~hard], cheap[~hard])


@pytest.mark.parametrize(("threshold", "exit_of"), [(0.0, 1), (1.0, 0)])
def test_extreme_thresholds_take_one_exit(threshold: float, exit_of: int) -> None:
    """Threshold 0 always takes the trunk, threshold 1 never."""
    model, x = small(threshold=threshold), values(8)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x)[0], model.exits(x)[exit_of])


def test_exported_encoder_has_the_trunk_in_a_branch() -> None:
    """The ONNX encoder computes the trunk's layers within If alone, and agrees on any batch."""
    model, x = small(), values(8)
    hard = mixed(model, x)
    graph = export_encoder(model)
    nodes = onnx.load_from_string(graph).graph.node
    assert [node.op_type for node in nodes].count("If") == 1
    outside = sum(node.op_type in {"Gemm", "MatMul"} for node in nodes)
    assert outside == 4  # stem, gate (two layers) and cheap exit
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for batch in (x, x[hard], x[~hard], x[:1]):
        with torch.no_grad():
            wanted = model.encode(batch)
        got = session.run(None, {"x": batch.numpy()})
        for found, expected in zip(got, wanted, strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_share_of_the_trunk_is_counted() -> None:
    """The skipped share is the trunk's multiply-adds over those of the whole encoder."""
    trunk, rest = 12 * 16 + 16 * 6, 12 * 4 + 4 * 6 + 4 * 4 + 4
    assert trunk_share(small()) == pytest.approx(trunk / (trunk + rest))


@pytest.mark.parametrize(("cost", "least", "most"), [(1e-3, 0.5, 1.0), (1e4, 0.0, 0.2)])
def test_a_dear_trunk_is_used_less(cost: float, least: float, most: float) -> None:
    """After training, a high cost closes the gate; without one it stays open."""
    x = values(60)
    run = run_for(
        "sparse",
        {**OPTIONS, "cost": cost, "latent_dim": 8, "stem": 1},
        (12,),
        training={"rounds": 1, "steps_per_round": 150, "learning_rate": 1e-2},
        epsilon=None,
        sample_rate=1.0,
        bounds=(-5.0, 5.0),
    )
    model = fit(run, x.numpy())
    assert isinstance(model, SparseVAE)
    with torch.no_grad():
        assert least <= float(model.gate(x).mean()) <= most


def test_the_loss_rises_with_the_cost_of_the_trunk() -> None:
    """One use of the trunk costs half of `cost`: the other half of the loss has no gate."""
    x, eps = values(4), torch.zeros(4, 3)
    with torch.no_grad():
        cheap, dear = (small(cost=cost) for cost in (1.0, 3.0))
        difference = dear(x, eps).distortion - cheap(x, eps).distortion
        torch.testing.assert_close(difference, cheap.gate(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cost": 0.0}, "cost as a positive number"),
        ({"threshold": 1.5}, "threshold between 0.0 and 1.0"),
        ({"threshold": 1}, "threshold between 0.0 and 1.0"),
        ({"stem": 0}, "stem between 1"),
        ({"hidden": ()}, "hidden as a list"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, object], words: str) -> None:
    """An option out of range is named together with what to do."""
    with pytest.raises(ConfigError, match=words):
        SparseConfig(**change)  # type: ignore[arg-type]
