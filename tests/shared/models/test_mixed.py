"""The mixed family: what is missing costs nothing, and is filled from the rest."""

import math

import pytest
import torch

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build
from fedlatent.shared.models.mixed import MixedVAE
from fedlatent.testing import noise, records
from tests.shared.models.cases import CASES


def model_of(name: str) -> MixedVAE:
    """The model of a case with columns number, three levels, number, two levels."""
    model = CASES[name].model()
    assert isinstance(model, MixedVAE)
    return model


def test_the_likelihood_is_that_of_each_column() -> None:
    """A complete record costs two Gaussians and two cross entropies."""
    model = model_of("mixed-complete")
    x = torch.tensor([[0.3, 1, 0, 1, 0, 0.8, 1, 1, 0]], dtype=torch.float64)
    out = torch.tensor([[0.1, 0.5, 1.0, 2.0, 3.0, -1.0, 1.0]], dtype=torch.float64)
    variance = model.config.variance
    numbers = (0.2**2 + 0.3**2) / (2 * variance) + math.log(2 * math.pi * variance)
    classes = -out[0, 2:5].log_softmax(0)[1] - out[0, 5:].log_softmax(0)[0]
    torch.testing.assert_close(model.distortion(x, out), (numbers + classes)[None])


def test_a_record_of_nothing_costs_nothing() -> None:
    """Where every value is missing there is no distortion, whatever the decoder says."""
    model = model_of("mixed-complete")
    decoded = model.decode(noise(CASES["mixed-complete"], 2))
    nothing = torch.zeros(2, 9, dtype=torch.float64)
    assert torch.equal(model.distortion(nothing, decoded), torch.zeros(2, dtype=torch.float64))


def test_presence_costs_where_it_is_learnt() -> None:
    """With presence learnt, four even odds of being missing cost four bits."""
    model = model_of("mixed")
    decoded = torch.zeros(1, 11, dtype=torch.float64)
    cost = model.distortion(torch.zeros(1, 9, dtype=torch.float64), decoded)
    torch.testing.assert_close(cost, torch.tensor([4 * math.log(2.0)], dtype=torch.float64))


def test_missing_numbers_have_no_value() -> None:
    """The number behind a flag of 0 moves neither latent nor terms."""
    model, eps = model_of("mixed"), noise(CASES["mixed"], 1)
    one = torch.tensor([[0.3, 0, 0, 1, 0, 0.8, 1, 1, 0]], dtype=torch.float64)
    other = one.clone()
    other[0, 0] = 0.9
    assert all(torch.equal(a, b) for a, b in zip(model(one, eps), model(other, eps), strict=True))


def test_imputation_keeps_what_is_there() -> None:
    """Values that are there stay; a missing number gets its mean, a missing class its odds."""
    model = model_of("mixed")
    x = torch.tensor([[0.0, 0, 0, 1, 0, 0.8, 1, 0, 0]], dtype=torch.float64)
    filled = model.impute(x)
    assert torch.equal(filled[:, 2:7], x[:, 2:7])
    assert filled[0, 1] == 1.0
    assert filled[0, 0] == model.decode(model.encode(x)[0])[0, 0]
    torch.testing.assert_close(filled[:, 7:].sum(1), torch.ones(1, dtype=torch.float64))
    complete = records(CASES["mixed"], 20)
    complete = complete[(model.split(complete).present > 0).all(1)]
    torch.testing.assert_close(model.impute(complete), complete)


def test_draws_are_rows_of_a_table() -> None:
    """Drawn numbers lie in [0, 1] with a flag, drawn classes are one level or none."""
    drawn = model_of("mixed").float().draw(200, torch.Generator().manual_seed(0))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    flags, blocks = drawn[:, [1, 6]], (drawn[:, 2:5], drawn[:, 7:])
    assert set(flags.flatten().tolist()) == {0.0, 1.0}
    assert (drawn[:, [0, 5]][flags == 0] == 0).all()
    for block in blocks:
        assert set(block.sum(1).tolist()) == {0.0, 1.0}
    assert (model_of("mixed-complete").float().draw(9, torch.Generator())[:, [1, 6]] == 1).all()


def test_a_hidden_class_is_learnt_from_a_number() -> None:
    """Trained on rows whose class follows from their number, it fills a missing class."""
    options = {"columns": [0, 2], "hidden": [16], "latent_dim": 2}
    model = build("mixed", options, (4,), 0)
    assert isinstance(model, MixedVAE)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        number = torch.rand(64, 1, generator=generator)
        levels = (number > 0.5).long() == torch.arange(2)
        there = (torch.rand(64, 1, generator=generator) < 0.7).float()
        x = torch.cat([number, torch.ones(64, 1), levels * there], 1)
        terms = model(x, torch.randn(64, 2, generator=generator))
        optimizer.zero_grad()
        (terms.distortion + terms.rate).mean().backward()
        optimizer.step()
    given = torch.tensor([[0.1, 1.0, 0.0, 0.0], [0.9, 1.0, 0.0, 0.0]])
    assert model.impute(given)[:, 2:].argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"columns": [0, 1]}, (3,)),
        ({"columns": [0, 3]}, (4,)),
        ({"columns": "number"}, (2,)),
        ({"variance": 0.0}, (2,)),
        ({"presence": 1}, (2,)),
        ({"hidden": []}, (2,)),
        ({}, (3,)),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], shape: tuple[int, ...]
) -> None:
    """Options out of range, and columns that do not fill the record, are configuration errors."""
    with pytest.raises(ConfigError, match="Expected"):
        build("mixed", options, shape, 0)
