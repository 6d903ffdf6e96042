"""What `import fedlatent` gives, and what it costs."""

import ast
import doctest
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedlatent as fl
from fedlatent.client.edge.runtime import ScoreTable
from fedlatent.client.home import ClientHome
from fedlatent.client.service import init_client
from fedlatent.server.home import ServerHome
from fedlatent.server.service import init_server

#: Frozen: a name that leaves breaks somebody's script, one that comes stays for good.
NAMES = [
    "Dataset",
    "Detector",
    "EdgeModel",
    "Federation",
    "FedlatentError",
    "Node",
    "Privacy",
    "RunConfig",
    "RunResult",
    "Schema",
    "Training",
    "audit",
    "export",
    "load",
    "privacy_plan",
    "read",
    "simulate",
    "train",
]
METHODS = [fl.Detector.save, ScoreTable.columns]


def test_the_names_are_frozen() -> None:
    """In order, all of them there, and completion knows them."""
    assert fl.__all__ == NAMES == sorted(NAMES)
    assert dir(fl) == NAMES
    for name in NAMES:
        assert getattr(fl, name).__name__ == name


def test_an_unknown_name_is_no_attribute() -> None:
    """The usual error, which hasattr and pickle rely on."""
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        fl.Detektor  # noqa: B018


def test_types_are_those_of_the_homes() -> None:
    """What type checkers read at the top is what is imported at the first use."""
    tree = ast.parse(Path(str(fl.__file__)).read_text(encoding="utf-8"))
    told = {
        name.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for name in node.names
    }
    assert {name: f"fedlatent.{home}" for name, home in fl._HOMES.items()} == told


def test_a_device_loads_no_framework() -> None:
    """`fedlatent.load` neither imports PyTorch nor Flower nor pandas, before and after a call."""
    code = (
        "import sys, fedlatent as fl\n"
        "fl.load\n"
        "assert 'numpy' not in sys.modules and 'onnxruntime' not in sys.modules\n"
        "try:\n    fl.load('none.fedlatent', key='none.pub')\n"
        "except fl.FedlatentError as error:\n    print(type(error).__name__)\n"
        "heavy = {'torch', 'flwr', 'pandas', 'pydantic', 'sklearn', 'opacus'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ConfigError"


def make_node(folder: Path) -> None:
    """A node with 60 records in ``folder``."""
    init_server(ServerHome(folder / "server"), host="127.0.0.1", port=0)
    rng = np.random.default_rng(0)
    np.savez(folder / "ward.npz", X=rng.uniform(0.1, 0.9, (60, 4)))
    schema = fl.Schema(name="four", shape=(4,), lower=0.0, upper=1.0)
    init_client(
        ClientHome(folder / "node"),
        site="ward-7",
        server="127.0.0.1:8443",
        ca_certificate=ServerHome(folder / "server").ca_certificate.read_bytes(),
        data={"path": str(folder / "ward.npz"), "schema": schema.to_dict()},
        policy={"max_epsilon": 4.0, "delta": 1e-5},
    )


def test_a_plan_needs_no_packages_of_simulations() -> None:
    """An operator without them can plan: neither plots nor Ray are imported."""
    code = (
        "import sys, fedlatent as fl\nfl.privacy_plan\n"
        "heavy = {'matplotlib', 'jinja2', 'ray'} & set(sys.modules)\nprint(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def examples(inside: Path, clients: fl.Federation) -> dict[str, object]:
    """What the examples take for granted: their folder and a few names."""
    rng = np.random.default_rng(0)
    trained = fl.train(clients, "patients.fedlatent", progress=False)
    make_node(inside)
    rows = rng.normal(size=(200, 4))
    return {
        "fl": fl,
        "np": np,
        "clients": clients,
        "model": trained.model,
        "records": clients.sites[0].test[:5],
        "normals": clients.sites[0].train,
        "beats_array": rng.normal(size=(80, 96)),
        "beats_label": np.arange(80) % 10 == 0,
        "rows": rows,
        "detector": fl.Detector(random_state=0).fit(rows),
        "run": fl.RunConfig(
            name="hearts", data=clients.schema, privacy=fl.Privacy(sample_rate=0.2)
        ),
    }


def test_every_example_runs(examples: dict[str, object]) -> None:
    """Each public name has an example, and all of them print what they say."""
    named: list[tuple[str, object]] = [(name, getattr(fl, name)) for name in NAMES]
    named += [(one.__qualname__, one) for one in METHODS]
    finder, failed = doctest.DocTestFinder(recurse=False), []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for name, thing in [("fedlatent", fl), *named]:
        found = [one for one in finder.find(thing, name, module=False) if one.examples]
        assert found, f"{name} has no example"
        for one in found:
            one.globs = dict(examples)
            told: list[str] = []
            runner.run(one, out=told.append, clear_globs=False)
            failed += told
    assert not failed, "".join(failed)


def test_objects_show_themselves(examples: dict[str, object]) -> None:
    """In a notebook each is a table, with everything that comes from outside escaped."""
    model, clients = examples["model"], examples["clients"]
    assert isinstance(model, fl.EdgeModel)
    assert isinstance(clients, fl.Federation)
    hostile = replace(clients, name="<script>alert(1)</script>")
    result = fl.simulate({}, clients, progress=False)
    plan = fl.privacy_plan(examples["run"])  # type: ignore[arg-type]
    shown = {
        "bundle": model,
        "records above": model.score(examples["records"]),  # type: ignore[arg-type]
        "east": clients,
        "&lt;script&gt;": hostile,
        "took part": result,
        "kNN": result.report(),
        "epsilon 3.99": plan,
    }
    for text, thing in shown.items():
        page = thing._repr_html_()
        assert text in page, page[:300]
        assert "<table" in page
        assert "<script>alert" not in page
        assert len(repr(thing)) < 1500
    assert repr(clients) == "Federation('patients.csv': 4 clients of 'patients')"
    assert repr(model) == "EdgeModel(site bundle 'trained', version 1)"
