"""The molecule family: likelihood up to the stop, teacher forcing, draws by the generator."""

import pytest
import torch

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build
from fedlatent.shared.models.molecule import MoleculeVAE
from fedlatent.testing import noise, records
from tests.shared.models.cases import CASES

CASE = CASES["molecule"]


def tiny() -> MoleculeVAE:
    """The case's model."""
    model = CASE.model()
    assert isinstance(model, MoleculeVAE)
    return model


def test_tokens_behind_the_stop_cost_nothing() -> None:
    """The distortion is the cross entropy of the tokens and of the first stop, no more."""
    logits = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = -sum(logits[0].log_softmax(1)[t, i] for t, i in enumerate((3, 1, 0)))
    got = tiny().distortion(x, logits)
    torch.testing.assert_close(got, expected[None])
    behind = torch.tensor([[3.0, 1.0, 0.0, 4.0, 2.0, 1.0]], dtype=torch.float64)
    assert torch.equal(tiny().distortion(behind, logits), got)


def test_a_full_record_needs_no_stop() -> None:
    """Without a stop every position counts."""
    x = torch.full((1, 6), 2.0, dtype=torch.float64)
    logits = torch.zeros(1, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(
        tiny().distortion(x, logits), 6.0 * torch.tensor([5.0], dtype=torch.float64).log()
    )


def test_forcing_its_own_tokens_gives_the_free_logits() -> None:
    """Fed with the tokens that it would choose, the forced decoder says what the free one says."""
    model = tiny()
    z = noise(CASE, 4)
    free = model.decode(z)
    chosen = (free.argmax(2)[..., None] == torch.arange(5)).double()
    torch.testing.assert_close(model.decoder.forced(z, chosen), free)


def test_logits_depend_on_earlier_tokens_alone() -> None:
    """Changing a token moves the logits behind it and no other."""
    model = tiny()
    z = noise(CASE, 1)
    one = (records(CASE, 1)[..., None] == torch.arange(5)).double()
    other = one.clone()
    other[0, 3] = other[0, 3].roll(1)
    before, after = model.decoder.forced(z, one), model.decoder.forced(z, other)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_draws_end_with_their_stop() -> None:
    """Draws are indices of the vocabulary, and nothing follows a stop."""
    drawn = tiny().float().draw(50, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) <= set(range(5))
    stopped = (drawn == 0).cumsum(1) > 0
    assert (drawn[stopped] == 0).all()
    assert drawn.unique(dim=0).shape[0] > 10


def test_training_learns_a_string() -> None:
    """A few hundred steps on one string and its mirror bring both back from their latents."""
    model = build("molecule", {**CASE.options, "hidden": 16}, (6,), 0)
    assert isinstance(model, MoleculeVAE)
    x = torch.tensor([[1, 2, 3, 4, 0, 0], [4, 3, 2, 1, 1, 0]], dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for step in range(200):
        eps = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        terms = model(x, eps)
        optimizer.zero_grad()
        (terms.distortion + 0.1 * terms.rate).sum().backward()
        optimizer.step()
    assert torch.equal(model.reconstruct(model.encode(x)[0]), x)


@pytest.mark.parametrize(
    "options",
    [{"vocabulary": 1}, {"hidden": 0}, {"channels": []}, {"activation": "none"}],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    """Every option outside its range is a configuration error."""
    with pytest.raises(ConfigError, match="Expected"):
        build("molecule", options, (6,), 0)


def test_records_of_two_axes_are_refused() -> None:
    """Tokens stand in one row."""
    with pytest.raises(ConfigError, match="token indices"):
        build("molecule", {}, (6, 2), 0)
