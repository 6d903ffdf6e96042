"""The study file: expansion of sweeps, and errors with line and key."""

import math

import pytest

from fedlatent.shared.data.sources import HEARTS_SCHEMA, MITBIH_SCHEMA
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.study.shipped import shipped
from fedlatent.simulations.study.spec import bind, likely_quorum, parse
from fedlatent.simulations.study.tables import AvailabilityTable, takes_list
from tests.simulations.study.tiny import TEXT, tiny


def test_a_list_where_a_value_is_expected_is_a_sweep() -> None:
    """Cells are the product of swept values and seeds, the first seed's settings first."""
    study = tiny("rounds = 2", "rounds = [1, 2]")
    assert [cell.id for cell in study.cells] == [
        f"epsilon-{epsilon}_rounds-{rounds}_seed-{seed}"
        for seed in (0, 1)
        for epsilon in (4, "none")
        for rounds in (1, 2)
    ]
    assert study.sweeps == {"epsilon": [4, "none"], "rounds": [1, 2]}
    assert study.keys == {"epsilon": "run.privacy.epsilon", "rounds": "run.training.rounds"}
    assert [cell.run["training"]["rounds"] for cell in study.cells[:2]] == [1, 2]


def test_epsilon_none_trains_without_privacy() -> None:
    """The word "none" switches the mechanism off; noise of the others is the simulation's."""
    private, plain = tiny().cells[:2]
    assert private.run["privacy"] == {"epsilon": 4, "rng": "simulation"}
    assert plain.run["privacy"] == {"mechanism": "none", "rng": "simulation"}
    assert plain.setting == {"epsilon": "none"}
    assert plain.label == "no privacy"


def test_an_option_that_is_a_list_is_swept_by_a_list_of_lists() -> None:
    """The value [8] is one width of hidden, and [[8], [16, 8]] are two."""
    assert takes_list(("run", "model", "options", "hidden"))
    assert not takes_list(("run", "model", "options", "latent_dim"))
    one = tiny()
    two = tiny("hidden = [8]", "hidden = [[8], [16, 8]]")
    assert "hidden" not in one.sweeps
    assert two.sweeps["hidden"] == [[8], [16, 8]]
    assert two.cells[1].id == "hidden-8_epsilon-none_seed-0"
    assert two.cells[2].label == "hidden 16x8, epsilon 4"


def test_data_grid_and_availability_can_be_swept() -> None:
    """Any key of these tables takes a list of values; equal short names get more of their path."""
    study = tiny("absent = 1", "absent = [1, 2]\n[availability]\nlate = [0.0, 0.1]")
    assert list(study.sweeps) == ["data.absent", "availability.late", "epsilon"]
    grids = tiny('grid = "stacked"', 'grid = ["nodes", "stacked"]')
    assert [cell.grid for cell in grids.cells[:3]] == ["nodes", "nodes", "stacked"]


def test_the_digest_is_of_what_bears_on_the_results() -> None:
    """Comments, order and the description leave it; a value changes it."""
    digest = tiny().digest()
    assert parse("# more\n" + TEXT, "other.toml").digest() == digest
    assert tiny("Two patients", "Other words").digest() == digest
    assert tiny("clients = 3\nabsent = 1", "absent = 1\nclients = 3").digest() == digest
    assert tiny("rounds = 2", "rounds = 3").digest() != digest
    assert tiny('"new10"]', '"new30"]').digest() != digest


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "rounds = 2",
            "rounds = 0",
            18,
            ("run.training.rounds", "greater than or equal to 1", "0"),
        ),
        ("rounds = 2", "rounds = [2, 'x']", 18, ("run.training.rounds", "an integer", "'x'")),
        ("rounds = 2", "rouds = 2", 18, ("run.training.rouds", "did you mean 'rounds'?")),
        ("rounds = 2", "rounds = ", 18, ("expected TOML", "syntax error")),
        ('"hearts"', '"heart"', 7, ("data.source", "'mitbih'", "'heart'", "mean 'hearts'?")),
        ("absent = 1", "absnt = 1", 9, ("data.absnt", "mean 'absent'?")),
        ("[data]", "[dta]", 6, ("dta", "mean 'data'?")),
        ("[4, ", "[-4, ", 15, ("run.privacy.epsilon", "greater than 0", "-4")),
        ("[4, ", "[4, 4, ", 15, ("run.privacy.epsilon", "different values", "4 twice")),
        ("[4, ", "[4, 'non', ", 15, ("run.privacy.epsilon", "a number", "'non'")),
        ('[4, "none"]', "[]", 15, ("run.privacy.epsilon", "empty list")),
        ("hidden = [8]", "hidden = [8.5, [1]]", 12, ("run.model.options.hidden", "whole numbers")),
        ("[0, 1]", "3", 4, ("seeds", "expected a list", "3")),
        ("[0, 1]", "[1, 1]", 4, ("seeds", "different")),
        ("[0, 1]", "[]", 4, ("seeds", "at least 1 value")),
        ('"stacked"', '"stackd"', 3, ("grid", "'deployed'", "mean 'stacked'?")),
        ('"new10"', '"new11"', 22, ("evaluate.questions", "'new11'", "mean 'new10'?")),
        ("absent = 1\n", "", 21, ("evaluate.questions", "data.absent", "'absent'")),
        ("[run.training]", "[run]\nseed = 1\n[run.training]", 18, ("run.seed", "seeds instead")),
        ("[run.training]", "[run.scorin]\na = 1\n[run.training]", 17, ("mean 'scoring'?",)),
        ('name = "tiny"', 'name = "Tiny"', 1, ("name", "small letters", "'Tiny'")),
        ('name = "tiny"', "", 0, ("name", "expected a value", "none")),
        ('"stacked"', '"flower"\navailability = { late = 0.1 }', 4, ("availability", "'flower'")),
        ("[data]", "[availability]\ndropout = 0.6\nlate = 0.5\n[data]", 6, ("below 1", "1.1")),
    ],
)
def test_a_mistake_is_said_with_file_line_and_key(
    old: str, new: str, line: int, words: tuple[str, ...]
) -> None:
    """One sentence names the file, the line, the key, what was expected and what came."""
    with pytest.raises(ConfigError) as caught:
        tiny(old, new)
    sentence = str(caught.value)
    assert sentence.startswith(f"tiny.toml, line {line}: " if line else "tiny.toml: ")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_nodes_and_quorum_are_those_who_take_part() -> None:
    """Without dropout all must answer; with it, as many as are all but sure to."""
    cell = tiny().cells[0]
    run = bind(tiny(), cell, HEARTS_SCHEMA, 2)
    assert (run.federation.nodes, run.federation.quorum) == (2, 2)
    assert run.data.name == HEARTS_SCHEMA.name
    away = AvailabilityTable(dropout=0.1, late=0.1)
    assert likely_quorum(1000, away) == math.floor(800 - 4 * math.sqrt(1000 * 0.8 * 0.2))
    assert likely_quorum(3, AvailabilityTable(dropout=0.5)) == 1


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[run.training]", "[run.federation]\nquorum = 3\n[run.training]", 18, "at most 2"),
        ("latent_dim = 3", "latent_dim = 0", 12, "run.model.options.latent_dim"),
        ("latent_dim = 3", "latent = 3", 12, "run.model"),
        ("[4, ", "[1e-4, ", 15, "can be reached"),
    ],
)
def test_a_run_that_does_not_fit_its_data_is_said_with_its_line(
    old: str, new: str, line: int, words: str
) -> None:
    """What only shows on the data, the model or the noise is found before anything runs."""
    study = tiny(old, new)
    with pytest.raises(ConfigError) as caught:
        bind(study, study.cells[0], MITBIH_SCHEMA, 2)
    assert f"tiny.toml, line {line}: " in str(caught.value)
    assert words in str(caught.value)


def test_the_shipped_studies_are_right() -> None:
    """Each parses, says what it is for, is named as its file, and repeats."""
    studies = {one.name: one for one in shipped()}
    assert studies.keys() >= {"first-look", "mitbih", "utility", "robustness", "generation"}
    for name, one in studies.items():
        assert one.source.endswith(f"/{name}.toml")
        assert one.description
        assert len({cell.id for cell in one.cells}) == len(one.cells)
    for name in ("first-look", "mitbih-epsilon", "smd-epsilon", "omniglot-epsilon"):
        one = studies[name]
        assert len(one.seeds) >= 2
        assert len(one.cells) == len(one.seeds) * math.prod(map(len, one.sweeps.values()))
    assert len(studies["utility"].cells) == 5 * 6 * 7 * 5
