"""``fedlatent model``: the sizes printed are those of the models that are built."""

import json
from typing import Any

import pytest

from fedlatent.shared.models import FAMILIES, build
from tests.cli.conftest import Run


def shown(run: Run, *arguments: str) -> dict[str, Any]:
    """What ``model show --json`` prints."""
    code, printed, said = run("model", "show", *arguments, "--json")
    assert code == 0, said
    facts: dict[str, Any] = json.loads(printed)
    return facts


def test_list_names_every_family(run: Run) -> None:
    """The table and its JSON name all families with their presets."""
    code, printed, _ = run("model", "list", "--json")
    assert code == 0
    listed = {one["family"]: one["presets"] for one in json.loads(printed)["families"]}
    assert listed == {name: list(family.presets) for name, family in FAMILIES.items()}
    _, words, _ = run("model", "list")
    assert all(name in words for name in FAMILIES)


def test_show_puts_presets_side_by_side(run: Run) -> None:
    """Without a preset each one is sized as it is built."""
    facts = shown(run, "gaussian", "--shape", "28,28")
    assert [one["preset"] for one in facts["models"]] == list(FAMILIES["gaussian"].presets)
    for one in facts["models"]:
        made = build("gaussian", {"preset": one["preset"]}, (28, 28), seed=0)
        assert one["parameters"] == sum(p.numel() for p in made.parameters())
        assert one["k"] == made.latent_dim


def test_show_says_what_leaves(run: Run) -> None:
    """What leaves are the encoder's tensors, counted by hand, and the decoder's four stay."""
    options = ("--option", "hidden=[4]", "--option", "latent_dim=2")
    facts = shown(run, "gaussian", "--shape", "6", "--preset", "tiny", *options)
    (one,) = facts["models"]
    assert one["leaves"] == {
        "encoder.1.weight": [4, 6],
        "encoder.1.bias": [4],
        "encoder.3.weight": [4, 4],
        "encoder.3.bias": [4],
    }
    assert (one["shared"], one["stays"]) == (48, 4)
    _, words, _ = run("model", "show", "gaussian", "--shape", "6", "--preset", "tiny", *options)
    assert "encoder.3.weight" in words
    assert "4 other tensors stay" in words


def test_options_are_numbers_words_and_lists(run: Run) -> None:
    """Values read as JSON, commas make lists, and other words are text."""
    options = ("hidden=3,5", "network=conv2d", "variance=0.1", "stochastic=false")
    arguments = [part for option in options for part in ("--option", option)]
    facts = shown(run, "gaussian", "--shape", "1x8x8", *arguments)
    assert facts["options"] == {
        "hidden": [3, 5],
        "network": "conv2d",
        "variance": 0.1,
        "stochastic": False,
    }
    assert facts["models"][0]["leaves"]["encoder.0.weight"] == [3, 1, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gausian", "--shape", "6"), "model family"),
        (("gaussian", "--shape", "6,a"), "--shape"),
        (("gaussian", "--shape", "0"), "positive sizes"),
        (("gaussian", "--shape", "6", "--preset", "huge"), "preset"),
        (("gaussian", "--shape", "6", "--option", "hidden"), "name=value"),
        (("gaussian", "--shape", "6", "--option", "depth=3"), "depth"),
        (("gaussian", "--shape", "6", "--option", "hidden=64"), "hidden"),
    ],
)
def test_wrong_arguments_are_one_sentence(run: Run, arguments: tuple[str, ...], words: str) -> None:
    """A wrong family, shape, preset or option is an error of ours."""
    code, printed, _ = run("model", "show", *arguments, "--json")
    error = json.loads(printed)["error"]
    assert code != 0
    assert error["code"] == "config"
    assert words in error["message"]
