"""A node whose file names persons: their records are capped, and nothing of them leaves."""

import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedlatent.client.export import export_site
from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Ledger, Person
from fedlatent.client.local import assemble, open_node
from fedlatent.client.node import Node
from fedlatent.client.policy import NodeConfig
from fedlatent.shared.bundle.archive import CARD, read_bundle
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.errors import BudgetExceeded, ConfigError, DataError, LedgerError
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.privacy.accounting import GaussianEvent
from fedlatent.shared.privacy.person import capped_epsilon, person_epsilon
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.toml import dumps
from tests.client.support import SHAPE, request, tiny_config, tiny_records, tiny_run, weights_of
from tests.client.test_node import run_whole

CAP = 3
#: Records of each person, and what the file calls them: texts that are found nowhere by chance.
COUNTS = {"Zebedee-00417": 40, "Quillon-00418": 2, "Ottoline-00419": 9, "Peregrin-00420": 3}
USED = sum(min(count, CAP) for count in COUNTS.values())


def write_csv(folder: Path, **changes: object) -> Path:
    """A table of 54 records with a column of persons, shuffled; changes replace columns."""
    persons = [name for name, count in COUNTS.items() for _ in range(count)]
    order = np.random.default_rng(3).permutation(len(persons))
    frame = pd.DataFrame(tiny_records(len(persons)), columns=[f"f{i}" for i in range(SHAPE[0])])
    frame["patient"] = np.array(persons)[order]
    frame = frame.assign(**changes)
    path = folder / "records.csv"
    frame.to_csv(path, index=False)
    return path


def config_of(
    run: RunConfig, path: Path, data: dict[str, object] | None = None, **policy: object
) -> NodeConfig:
    """A node on that file that caps persons."""
    plain = tiny_config(run).model_dump(by_alias=True, exclude_none=True)
    plain["data"] |= {"path": path, "person_key": "patient", "max_records_per_person": CAP}
    plain["data"] |= data or {}
    caps = {"smallest_batch": 1.0}  # the table is small
    plain["policy"] |= {"delta": 1e-5, "allow_simulation_rng": True, "caps": caps, **policy}
    return NodeConfig.model_validate(plain)


def node_of(root: Path, config: NodeConfig) -> Node:
    """The node as the resident process opens it."""
    home = ClientHome(root)
    home.create()
    tables = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    home.config.write_text(dumps(tables))
    return open_node(home)


def test_each_persons_records_are_capped_and_the_rest_are_counted(tmp_path: Path) -> None:
    """The node holds at most so many records a person, N is their number, and N is what it says."""
    asked = tiny_run()
    path = write_csv(tmp_path)
    node = node_of(tmp_path / "home", config_of(asked, path))
    assert len(node.records) == USED == 3 + 2 + 3 + 3
    frame = pd.read_csv(path)
    values = np.clip(frame.drop(columns="patient").to_numpy(), -3.0, 3.0).astype(np.float32)
    rows = dict(zip(map(tuple, values), frame["patient"], strict=True))
    held = [rows[tuple(record.numpy())] for record in node.records]
    assert {who: held.count(who) for who in COUNTS} == {
        who: min(count, CAP) for who, count in COUNTS.items()
    }
    answer = node.handle(request(asked, 1), weights_of(asked))
    assert (answer.header.status, answer.header.records) == ("ok", USED)
    again = node_of(tmp_path / "home", config_of(asked, path))
    np.testing.assert_array_equal(again.records.numpy(), node.records.numpy())


def test_nothing_of_a_person_leaves_or_is_kept(tmp_path: Path) -> None:
    """No payload, log line or file of the home but node.toml says whose records these are."""
    asked = tiny_run()
    home = tmp_path / "home"
    node = node_of(home, config_of(asked, write_csv(tmp_path)))
    out = run_whole(node, asked)
    assert all(one.header.status == "ok" for one in out)
    files = [path for path in home.rglob("*") if path.is_file() and path.name != "node.toml"]
    assert {"releases.log", "releases.jsonl", "ledger.db"} <= {path.name for path in files}
    for name in [*COUNTS, "patient"]:
        for payload in [one.payload for one in out] + [path.read_bytes() for path in files]:
            assert name.encode() not in payload
            assert name.split("-")[0].encode() not in payload
    for one in out:  # nor how many persons there are, or the cap
        assert "person" not in one.header.model_dump_json()


def test_records_have_no_column_of_persons(tmp_path: Path) -> None:
    """Without a list of columns the persons, numbers here, are left out of the records."""
    asked = tiny_run()
    numbers = [17 + 4 * (i % 5) for i in range(sum(COUNTS.values()))]
    node = node_of(tmp_path / "home", config_of(asked, write_csv(tmp_path, patient=numbers)))
    assert tuple(node.records.shape) == (5 * CAP, *SHAPE)


def blank(row: int) -> Callable[[Path], Path]:
    """A file in which the person of one row, counted from 1, is missing."""

    def write(folder: Path) -> Path:
        persons = [f"p{i % 4}" for i in range(sum(COUNTS.values()))]
        persons[row - 1] = ""
        return write_csv(folder, patient=persons)

    return write


@pytest.mark.parametrize(
    ("write", "data", "words"),
    [
        (blank(7), {}, r"got none in row 7 \(the first record is row 1\)"),
        (write_csv, {"columns": [*(f"f{i}" for i in range(11)), "patient"]}, "records or labels"),
        (write_csv, {"label_key": "patient", "normal_label": "x"}, "records or labels"),
        (write_csv, {"person_key": "patients"}, "columns patients once"),
    ],
)
def test_a_file_that_does_not_tell_persons_apart_is_refused(
    tmp_path: Path, write: Callable[[Path], Path], data: dict[str, object], words: str
) -> None:
    """A gap, a column used twice and an absent column are errors, before anything is computed."""
    with pytest.raises(DataError, match=words) as caught:
        node_of(tmp_path / "home", config_of(tiny_run(), write(tmp_path), data))
    assert not any(name in str(caught.value) for name in COUNTS)


@pytest.mark.parametrize("given", ["person_key", "max_records_per_person"])
def test_persons_and_their_cap_come_together(tmp_path: Path, given: str) -> None:
    """Either of the two alone promises nothing, so the node file is refused."""
    other = {"person_key", "max_records_per_person"} - {given}
    text = write_csv(tmp_path)
    with pytest.raises(ValueError, match="together"):
        config_of(tiny_run(), text, dict.fromkeys(other))
    with pytest.raises(ConfigError, match="person_key"):
        NodeConfig.from_toml(
            'site = "a"\n[data]\npath = "x.csv"\n[data.schema]\nname = "x"\nshape = [2]\n'
            "[policy]\nmax_epsilon = 2\nmax_person_epsilon = 4\n"
        )


def test_a_data_set_in_memory_is_capped_too_and_needs_persons(tmp_path: Path) -> None:
    """Whoever puts a node together cannot go round the cap."""
    asked = tiny_run()
    config = config_of(asked, Path("none.csv"))
    node = node_of(tmp_path / "a", config_of(asked, write_csv(tmp_path)))
    data = Dataset(records=node.records.numpy(), schema=node.schema)
    with pytest.raises(DataError, match="persons"):
        assemble(config, data, ClientHome(tmp_path / "b"))
    one = replace(data, person=np.zeros(len(data), dtype=np.int64))
    assert len(assemble(config, one, ClientHome(tmp_path / "c")).records) == CAP


def test_a_site_bundle_says_what_a_person_has_spent(tmp_path: Path) -> None:
    """The card of the site's own bundle has the figure, by the same entries."""
    asked = tiny_run()
    home = ClientHome(tmp_path / "home")
    node = node_of(home.root, config_of(asked, write_csv(tmp_path)))
    run_whole(node, asked)
    spent = person_epsilon(PrivacyPlan.from_config(asked).events(), node.ledger.delta, CAP)
    assert node.ledger.person_epsilon() == pytest.approx(spent)
    assert spent > node.ledger.epsilon()
    key = SigningKey.generate(home.signing_key)
    card = read_bundle(export_site(home).path, [key.public]).files[CARD].decode()
    assert f"at most {CAP} records" in card
    assert f"is ({spent:.3g}, {node.ledger.delta:.3g})-differentially private per person" in card


def test_a_site_bundle_says_what_was_spent_until_it_is_made(tmp_path: Path) -> None:
    """Releases of later runs are in its figures, of a record and of a person."""
    asked = tiny_run()
    home = ClientHome(tmp_path / "home")
    node = node_of(home.root, config_of(asked, write_csv(tmp_path), max_epsilon=20.0))
    run_whole(node, asked)
    node.handle(request(asked, 1, run_id="later-1"), weights_of(asked))
    spent, person = node.ledger.epsilon(), node.ledger.person_epsilon()
    assert person is not None
    assert spent > PrivacyPlan.from_config(asked).epsilon() + 0.1
    key = SigningKey.generate(home.signing_key)
    card = read_bundle(export_site(home).path, [key.public]).files[CARD].decode()
    assert f"({spent:.3g}, {node.ledger.delta:.3g})-differentially private per record" in card
    assert f"({person:.3g}, {node.ledger.delta:.3g})-differentially private per person" in card


def test_a_run_that_would_cost_a_person_too_much_is_refused_before_anything(
    tmp_path: Path,
) -> None:
    """The whole run is judged at its first request, in a sentence that may travel."""
    asked = tiny_run()
    whole = person_epsilon(PrivacyPlan.from_config(asked).events(), 1e-5, CAP)
    path = write_csv(tmp_path)
    tight = node_of(tmp_path / "tight", config_of(asked, path, max_person_epsilon=0.99 * whole))
    answer = tight.handle(request(asked, 1), weights_of(asked))
    assert (answer.header.status, answer.header.code) == ("refused", "budget")
    assert f"a person with {CAP} records" in (answer.header.text or "")
    assert tight.ledger.entries() == []
    wide = node_of(tmp_path / "wide", config_of(asked, path, max_person_epsilon=1.01 * whole))
    assert {one.header.status for one in run_whole(wide, asked)} == {"ok"}
    other = wide.handle(request(asked, 1, run_id="second"), weights_of(asked))
    assert other.header.code == "budget"


def test_a_single_release_is_held_to_the_persons_limit(tmp_path: Path) -> None:
    """Charges stop below the limit, also when a run asks more often than it planned."""
    limit = 6.0
    ledger = Ledger(
        tmp_path / "l.db", "records", 100.0, 1e-5, person=Person(records=4, max_epsilon=limit)
    )
    event = GaussianEvent(noise_multiplier=9.0)
    ledger.open_run("r", "c", [event])
    many = 0
    while person_epsilon([event] * (many + 1), 1e-5, 4) <= limit:
        ledger.reserve("r", 1, "moments", str(many), event, "secure")
        many += 1
    with pytest.raises(BudgetExceeded, match="person with 4 records"):
        ledger.reserve("r", 1, "moments", str(many), event, "secure")
    assert len(ledger.entries()) == many > 1
    with pytest.raises(BudgetExceeded, match="got inf"):
        ledger.reserve("r", 1, "moments", "noiseless", None, "secure")
    # What was charged already is found, not charged.
    assert ledger.reserve("r", 1, "moments", "0", event, "secure").request_digest == "0"


EVENT = GaussianEvent(noise_multiplier=9.0)


def charged(root: Path, caps: list[int | None]) -> Ledger:
    """A ledger charged once under each cap, None for a node without persons, opened under 2."""
    for number, most in enumerate(caps):
        person = None if most is None else Person(records=most)
        ledger = Ledger(root / "l.db", "records", 100.0, 1e-5, person=person)
        ledger.open_run("r", "c", [EVENT])
        ledger.reserve("r", 1, "moments", str(number), EVENT, "secure")
    return Ledger(root / "l.db", "records", 100.0, 1e-5, person=Person(records=2))


def test_a_lower_cap_does_not_forget_what_left_under_a_higher_one(tmp_path: Path) -> None:
    """Each release counts with the cap it was made under."""
    ledger = charged(tmp_path, [20, 2])
    wanted = capped_epsilon([(EVENT, 20), (EVENT, 2)], 1e-5)
    assert ledger.person_epsilon() == pytest.approx(wanted)
    assert wanted > person_epsilon([EVENT] * 2, 1e-5, 2)


def test_releases_without_a_cap_leave_no_epsilon_for_a_person(tmp_path: Path) -> None:
    """A column of persons that comes later does not bound what had left before it."""
    ledger = charged(tmp_path, [2, None])
    assert ledger.person_epsilon() == math.inf
    assert ledger.epsilon() < 1


def test_the_cap_of_an_entry_is_part_of_the_chain(tmp_path: Path) -> None:
    """Whoever writes a lower cap into the file is found out."""
    ledger = charged(tmp_path, [20])
    assert [entry.cap for entry in ledger.entries()] == [20]
    ledger.verify()
    with sqlite3.connect(tmp_path / "l.db") as connection:
        connection.execute("UPDATE entries SET cap = 1")
    with pytest.raises(LedgerError):
        ledger.verify()
