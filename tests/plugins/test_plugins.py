"""A package from outside adds a family, a summary, a reader and a strategy, and breaks nothing."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fedlatent as fl

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / "toy"
GOOD = """\
[fedlatent.families]
shy = toy_plugin:FAMILY
[fedlatent.summaries]
outside = toy_plugin:SUMMARY
[fedlatent.readers]
.toy = toy_plugin:read
[fedlatent.strategies]
toy/middle = toy_plugin:strategy
"""
BAD = """\
[fedlatent.families]
absent = no_such_module:FAMILY
gaussian = toy_plugin:FAMILY
number = math:pi
[fedlatent.summaries]
other = toy_plugin:SUMMARY
[fedlatent.readers]
toy = toy_plugin:read
[fedlatent.strategies]
middle = toy_plugin:strategy
"""
SCHEMA = '[data]\nname = "six"\nshape = [6]\nlower = -4.0\nupper = 4.0\n'


def install(folder: Path, entries: str, name: str = "toy") -> Path:
    """What an installer leaves of a package: its metadata, with these entry points."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"  # as installers write it
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)
    return folder


def python(folder: Path, *words: str, paths: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """A process that has the packages of those paths, at work in a folder."""
    path = os.pathsep.join(map(str, (ROOT, TOY, *paths)))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def fedlatent(
    folder: Path, *words: object, paths: tuple[Path, ...]
) -> subprocess.CompletedProcess[str]:
    """A command in such a process."""
    return python(folder, "-m", "fedlatent.cli.main", *map(str, words), paths=paths)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working folder with records for the toy's reader, and a schema."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "work"
    folder.mkdir()
    np.savetxt(folder / "records.toy", rng.normal(size=(90, 6)), delimiter="|")
    np.savez(folder / "new.npz", X=rng.normal(size=(5, 6)))
    (folder / "schema.toml").write_text(SCHEMA)
    return folder


def test_family_and_reader_from_file_to_device(place: Path, tmp_path: Path) -> None:
    """Named by the command line, trained from a file of the toy's, scored without the toy."""
    paths = (install(tmp_path / "site", GOOD),)
    listed = json.loads(fedlatent(place, "model", "list", "--json", paths=paths).stdout)
    assert "shy" in [one["family"] for one in listed["families"]]
    made = fedlatent(
        place,
        *("train", "records.toy", "--schema", "schema.toml", "--family", "shy"),
        *("--out", "toy.fedlatent", "--json"),
        paths=paths,
    )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["family"] == "shy"
    model = fl.load(place / "toy.fedlatent", key=place / "publisher.pem.pub")
    with np.load(place / "new.npz") as archive:
        assert np.isfinite(model.score(archive["X"]).score).all()
    without = fedlatent(place, "train", "records.toy", "--schema", "schema.toml", paths=())
    assert without.returncode == 3
    assert "got 'records.toy'" in without.stderr
    unknown = fedlatent(
        place, "train", "new.npz", "--schema", "schema.toml", "--family", "shy", paths=()
    )
    assert unknown.returncode in (2, 3)


CONFIGURED = """
import json
from pathlib import Path
import numpy as np
import fedlatent as fl
from fedlatent.api.runs import configured
from fedlatent.shared.data.sources import hearts
from fedlatent.simulations.audit.unit import summary_cases

sites = hearts(3, seed=0)
tables = {
    "model": {"family": "shy", "options": {"hidden": [8], "latent_dim": 3}},
    "training": {"rounds": 1, "steps_per_round": 3},
    "privacy": {"epsilon": 8.0},
    "summaries": {"more": ["outside"]},
    "strategy": {"robust": "toy/middle"},
}
Path("run.toml").write_text(configured(tables, sites).to_toml())
"""

SIMULATED = (
    CONFIGURED
    + """
found = {}
for engine in ("stacked", "nodes"):
    result = fl.simulate(tables, sites, engine=engine, progress=False)
    found[engine] = result
kinds = found["nodes"].rounds["kind"].tolist()
same = all(
    np.allclose(value, found["nodes"].simulation.result.arrays[name], atol=1e-5)
    for name, value in found["stacked"].simulation.result.arrays.items()
)
plain = fl.simulate({**tables, "summaries": {}}, sites, progress=False)
(case,) = [one for one in summary_cases(0) if one.kind == "outside"]
plan = fl.privacy_plan(found["nodes"].run)
found["nodes"].export("hearts.fedlatent")
print(json.dumps({
    "kinds": kinds,
    "plain": plain.rounds["kind"].tolist(),
    "same": same,
    "moved": case.moved,
    "sensitivity": case.spec.sensitivity,
    "planned": plan.releases.index.tolist(),
    "epsilon": found["nodes"].epsilon,
}))
"""
)


def test_all_four_in_a_federation(place: Path, tmp_path: Path) -> None:
    """Both engines agree, the ledger pays for the summary, the audit attacks it; a bundle comes."""
    paths = (install(tmp_path / "site", GOOD),)
    done = python(place, "-c", SIMULATED, paths=paths)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["kinds"][-2:] == ["outside", "threshold"]  # what closes a run is last
    assert "outside" not in found["plain"]  # only where a run names it
    assert "outside" in found["planned"]
    assert found["moved"] == pytest.approx(found["sensitivity"])
    assert 7.5 < found["epsilon"] <= 8.0
    beats = np.random.default_rng(0).normal(size=(4, 128))
    model = fl.load(place / "hearts.fedlatent", key=place / "publisher.pem.pub")
    assert model.score(beats).score.shape == (4,)


def test_a_side_without_the_plugin_says_so(place: Path, tmp_path: Path) -> None:
    """A run that names what is not here is refused in one sentence, by its key."""
    paths = (install(tmp_path / "site", GOOD),)
    assert python(place, "-c", CONFIGURED, paths=paths).returncode == 0
    plan = fedlatent(place, "privacy", "plan", "run.toml", "--json", paths=())
    assert plan.returncode == 2
    assert json.loads(plan.stdout)["error"]["field"] in ("summaries.more", "model.family")
    text = (place / "run.toml").read_text().replace('family = "shy"', 'family = "gaussian"')
    (place / "run.toml").write_text(text)
    plan = fedlatent(place, "privacy", "plan", "run.toml", "--json", paths=())
    error = json.loads(plan.stdout)["error"]
    assert error["field"] == "summaries.more"
    assert "got 'outside'; install its package here" in error["message"]


def test_a_broken_plugin_breaks_nothing_else(place: Path, tmp_path: Path) -> None:
    """Each mistake is a sentence where its name is asked for, and in doctor; all else works."""
    paths = (install(tmp_path / "site", GOOD), install(tmp_path / "bad", BAD, "bad"))
    listed = json.loads(fedlatent(place, "model", "list", "--json", paths=paths).stdout)
    names = [one["family"] for one in listed["families"]]
    assert "gaussian" in names
    assert "shy" in names
    assert not {"absent", "number"} & {*names}
    code = (
        "from fedlatent.shared.models import FAMILIES\n"
        "from fedlatent.shared.summaries import SUMMARIES\n"
        "from fedlatent.shared.data.readers import READERS\n"
        "from fedlatent.server.strategies.robust import RULES\n"
        "from fedlatent.shared.plugins import all_problems\n"
        "assert FAMILIES['gaussian'].about.startswith('autoencoder')\n"
        "print('\\n'.join(all_problems()))\n"
    )
    told = python(place, "-c", code, paths=paths)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    for words in (
        "'absent' of fedlatent.families: expected an import of 'no_such_module:FAMILY'",
        "'gaussian' of fedlatent.families: expected a name that fedlatent does not have",
        "'number' of fedlatent.families: expected a Family, got a float",
        "'other' of fedlatent.summaries: expected a summary of kind 'other'",
        "'toy' of fedlatent.readers: expected the ending of a file",
        "'middle' of fedlatent.strategies: expected a name such as 'package/name'",
    ):
        assert [line for line in lines if words in line and line.startswith("plugin 'bad'")], words
    asked = fedlatent(place, "model", "show", "absent", "--shape", 6, paths=paths)
    assert asked.returncode == 2
    assert "plugin 'bad', entry point 'absent'" in asked.stderr
    assert fedlatent(place, "--help", paths=paths).returncode == 0


def test_a_summary_that_takes_our_name_changes_no_run(place: Path, tmp_path: Path) -> None:
    """A refused plugin leaves the kinds that take place as they are, and those it would replace."""
    entries = "[fedlatent.summaries]\nmoments = toy_plugin:SUMMARY\nthreshold = math:pi\n"
    code = (
        "from fedlatent.shared.config import RunConfig\n"
        "from fedlatent.shared.summaries import SUMMARIES, taking_place\n"
        "data = {'name': 'any', 'shape': [6]}\n"
        "print(*taking_place(RunConfig.parse({'name': 'a', 'data': data}, 'a')))\n"
        "print(len(SUMMARIES.problems()))\n"
    )
    without = python(place, "-c", code, paths=())
    with_bad = python(place, "-c", code, paths=(install(tmp_path / "bad", entries, "bad"),))
    assert (without.returncode, with_bad.returncode) == (0, 0), with_bad.stderr
    assert "moments" in without.stdout.split()
    assert with_bad.stdout.splitlines() == [without.stdout.splitlines()[0], "2"]


def test_a_plugin_that_ends_its_process_at_import_is_told(place: Path, tmp_path: Path) -> None:
    """`sys.exit` in a package's module is a sentence of doctor's, not the end of a command."""
    folder = install(tmp_path / "bad", "[fedlatent.families]\nquits = quits:FAMILY\n", "bad")
    (folder / "quits.py").write_text("raise SystemExit(0)\n")
    listed = fedlatent(place, "model", "list", "--json", paths=(folder,))
    assert listed.returncode == 0, listed.stderr
    assert "gaussian" in [one["family"] for one in json.loads(listed.stdout)["families"]]
    shown = fedlatent(place, "model", "show", "quits", "--shape", 6, paths=(folder,))
    assert shown.returncode == 2
    assert "plugin 'bad', entry point 'quits'" in shown.stderr
    assert "got SystemExit" in shown.stderr


OUT_OF_SHAPE = """\
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

import fedlatent as fl
from fedlatent.server.strategies.robust import CentredClipping
from fedlatent.shared.models import Family
from toy_plugin import Outside, GaussianVAE

Node = fl.Node


class Nameless(Outside):
    kind = "nameless"

    @property
    def stream(self):
        raise AttributeError("no stream")


class Loud(Outside):
    kind, stream = "Loud", 43


class Zero(Outside):
    kind, stream = "zero", 0


class Far(Outside):
    kind, stream = "far", 44


@dataclass(frozen=True)
class Untold:
    hidden: int = 3


@dataclass(frozen=True)
class Strange:
    layer: nn.Module | None = None


UNTOLD = Family(about="no word on its options", config=Untold, model=GaussianVAE, presets={})
STRANGE = Family(about="no JSON", config=Strange, model=GaussianVAE, presets={})
PLAIN = Family(about="options that are none", config=dict, model=GaussianVAE, presets={})
NAMELESS, LOUD, ZERO, FAR = Nameless(), Loud(), Zero(), Far()


def damaged(path, asked):
    raise ValueError("the secret 4711")


def pairs(path, asked):
    return [[1.0, 2.0]]


def strategy(hostile, count):
    return CentredClipping()
"""
OUT_OF_SHAPE_ENTRIES = """\
[fedlatent.families]
untold = shapes:UNTOLD
strange = shapes:STRANGE
plain = shapes:PLAIN
[fedlatent.summaries]
nameless = shapes:NAMELESS
Loud = shapes:LOUD
zero = shapes:ZERO
far = shapes:FAR
[fedlatent.readers]
.damaged = shapes:damaged
.pairs = shapes:pairs
.TOP = shapes:pairs
[fedlatent.strategies]
Shapes/one = shapes:strategy
shapes/one = shapes:strategy
"""


@pytest.fixture
def shapes(tmp_path: Path) -> tuple[Path, ...]:
    """A package whose plugins import much of ours, and some of which are not what they must be."""
    folder = install(tmp_path / "shapes", OUT_OF_SHAPE_ENTRIES, "shapes")
    (folder / "shapes.py").write_text(OUT_OF_SHAPE)
    return (folder,)


def test_what_is_out_of_shape_is_told_and_the_rest_is_used(
    place: Path, shapes: tuple[Path, ...]
) -> None:
    """Whatever a look at a plugin raises is a sentence; a plugin may import what it likes of us."""
    code = (
        "import fedlatent.shared.schedule\n"
        "from fedlatent.shared.models import FAMILIES\n"
        "from fedlatent.shared.summaries import SUMMARIES\n"
        "from fedlatent.shared.data.readers import READERS\n"
        "from fedlatent.server.strategies.robust import RULES\n"
        "for one in (FAMILIES, SUMMARIES, READERS, RULES):\n"
        "    print(*[name for name in one if name not in one.own])\n"
        "    print(*one.problems().values(), sep='\\n')\n"
    )
    told = python(place, "-c", code, paths=shapes)
    assert told.returncode == 0, told.stderr[-2000:]
    for words in (
        "'plain' of fedlatent.families: expected a dataclass as its config",
        "'nameless' of fedlatent.summaries: expected 'shapes:NAMELESS' to be whole, got Attribute",
        "'Loud' of fedlatent.summaries: expected a name that summaries.more may hold",
        "'zero' of fedlatent.summaries: expected a positive number as its stream",
        "'.TOP' of fedlatent.readers: expected an ending in lower case",
        "'Shapes/one' of fedlatent.strategies: expected a name such as 'package/name'",
    ):
        assert words in told.stdout, told.stdout
    lines = told.stdout.splitlines()
    assert {"strange untold", "far", ".damaged .pairs", "shapes/one"} <= {*lines}, lines


def test_options_without_words_break_no_schema(place: Path, shapes: tuple[Path, ...]) -> None:
    """Families whose options are not described, or have no JSON, leave the others as they are."""
    made = fedlatent(place, "schema", "run", paths=shapes)
    assert made.returncode == 0, made.stderr[-2000:]
    with_them, without = (
        json.loads(one.stdout) for one in (made, fedlatent(place, "schema", "run", paths=()))
    )

    def families(schema: dict[str, object]) -> list[str]:
        found = json.dumps(schema)
        return [name for name in ("untold", "strange", "gaussian") if f'"{name}"' in found]

    assert families(with_them) == ["untold", "strange", "gaussian"]
    assert families(without) == ["gaussian"]
    assert fedlatent(place, "server", "init", "--home", "server", paths=shapes).returncode == 0


@pytest.mark.parametrize(
    ("ending", "words"),
    [("damaged", "to read records.damaged, got ValueError"), ("pairs", "to give a Found with 0")],
)
def test_a_reader_that_fails_is_one_sentence(
    place: Path, shapes: tuple[Path, ...], ending: str, words: str
) -> None:
    """Exit 3, without a traceback or what the error says, which may be of private records."""
    (place / f"records.{ending}").write_text("4711")
    words_of = ("train", f"records.{ending}", "--schema", "schema.toml")
    done = fedlatent(place, *words_of, paths=shapes)
    assert done.returncode == 3, done.stderr[-2000:]
    assert f"plugin for .{ending} {words}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "4711" not in done.stderr


def test_threads_wait_for_the_first_look(place: Path, tmp_path: Path) -> None:
    """A name is known to each thread, also while another imports the packages."""
    folder = install(tmp_path / "slow", "[fedlatent.families]\nshy = slow:FAMILY\n", "slow")
    (folder / "slow.py").write_text("import time\ntime.sleep(1)\nfrom toy_plugin import FAMILY\n")
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from fedlatent.shared.models import FAMILIES\n"
        "with ThreadPoolExecutor(3) as pool:\n"
        "    print(*pool.map(lambda _: 'shy' in FAMILIES, range(3)))\n"
    )
    done = python(place, "-c", code, paths=(folder,))
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_two_packages_with_one_name_are_refused(place: Path, tmp_path: Path) -> None:
    """Neither is taken, and both are told."""
    paths = (install(tmp_path / "one", GOOD), install(tmp_path / "two", GOOD, "twin"))
    shown = fedlatent(place, "model", "show", "shy", "--shape", 6, paths=paths)
    assert shown.returncode == 2
    assert "expected one package with that name, got 2" in shown.stderr


def test_a_new_family_passes_its_contract(place: Path, tmp_path: Path) -> None:
    """What `fedlatent new family` writes is a package whose own tests pass, and that trains."""
    made = fedlatent(place, "new", "family", "mine", paths=())
    assert made.returncode == 0, made.stderr
    package = place / "fedlatent-mine"
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["fedlatent.families"].values()
    entries = f"[fedlatent.families]\nmine = {value}\n"
    paths = (package, install(tmp_path / "site", entries, project["name"]))
    tested = python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", paths=paths)
    assert tested.returncode == 0, tested.stdout[-3000:]
    assert " passed" in tested.stdout
    shown = fedlatent(place, "model", "show", "mine", "--shape", 6, "--json", paths=paths)
    assert json.loads(shown.stdout)["family"] == "mine"


@pytest.mark.parametrize(
    ("name", "told"),
    [("gaussian", "no family has"), ("My-Family", "lower-case letters"), ("twice", "no folder")],
)
def test_a_new_family_needs_a_free_name(place: Path, name: str, told: str) -> None:
    """One sentence, and nothing is written over."""
    (place / "fedlatent-twice").mkdir()
    done = fedlatent(place, "new", "family", name, paths=())
    assert done.returncode == 2
    assert told in done.stderr
    assert not [*(place / "fedlatent-twice").iterdir()]


def test_an_unknown_strategy_is_told_before_a_run(tmp_path: Path) -> None:
    """By the server, which alone needs the package."""
    sites = fl.read(np.random.default_rng(0).normal(size=(80, 4)))
    with pytest.raises(fl.FedlatentError, match="got 'toy/none'; install the package"):
        fl.simulate({"strategy": {"robust": "toy/none"}}, sites, progress=False)
