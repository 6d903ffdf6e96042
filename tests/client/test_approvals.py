"""Runs that wait for a person at the site."""

from pathlib import Path

import pytest

from fedlatent.client import approvals
from fedlatent.client.approvals import Approvals
from fedlatent.client.home import ClientHome
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.client.support import RUN_ID, request, tiny_node, tiny_run, weights_of
from tests.client.test_caps import nothing_happened, refused


def book(root: Path) -> Approvals:
    """What the command line opens."""
    return Approvals(ClientHome(root).approvals)


def test_a_run_waits_for_a_person_before_any_charge(tmp_path: Path) -> None:
    """Nothing is charged until a person has approved; the facts of the run lie ready."""
    run = tiny_run()
    node = tiny_node(tmp_path, run, approval="each-run")
    for _ in range(2):
        refused(node, node.handle(request(run, 1), weights_of(run)), "waits")
    (asked,) = book(tmp_path).runs()
    assert (asked.run, asked.state, asked.digest) == (RUN_ID, "pending", run.digest())
    assert asked.epsilon == PrivacyPlan.from_config(run).epsilon()
    assert asked.releases == {"train": 3, "moments": 1, "threshold": 1}
    book(tmp_path).decide(RUN_ID, "approved")
    assert node.handle(request(run, 1), weights_of(run)).header.status == "ok"
    book(tmp_path).decide(RUN_ID, "refused")
    later = node.handle(request(run, 2), weights_of(run, seed=1))
    assert (later.header.code, "refused there" in later.header.text) == ("policy", True)
    assert len(node.ledger.entries()) == 1


def test_an_approval_is_for_one_configuration(tmp_path: Path) -> None:
    """Another configuration under an approved or waiting name is refused, and changes nothing."""
    run, other = tiny_run(), tiny_run(privacy={"epsilon": 4.5})
    node = tiny_node(tmp_path, run, approval="each-run")
    refused(node, node.handle(request(run, 1), weights_of(run)), "waits")
    refused(node, node.handle(request(other, 1), weights_of(run)), "another one")
    book(tmp_path).decide(RUN_ID, "approved")
    refused(node, node.handle(request(other, 1), weights_of(run)), "another one")
    (asked,) = book(tmp_path).runs()
    assert asked.digest == run.digest()
    same = node.handle(request(run, 1, run_id="tiny-2"), weights_of(run))
    refused(node, same, "waits")


def test_only_runs_within_the_policy_are_put_before_a_person(tmp_path: Path) -> None:
    """What the policy refuses anyway leaves no file."""
    run = tiny_run(privacy={"epsilon": 9.0})
    node = tiny_node(tmp_path, run, approval="each-run")
    refused(node, node.handle(request(run, 1), weights_of(run)), "epsilon")
    assert book(tmp_path).runs() == []


def test_waiting_runs_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that invents runs fills no disk."""
    monkeypatch.setattr(approvals, "MAX_PENDING", 2)
    run = tiny_run()
    node = tiny_node(tmp_path, run, approval="each-run")
    for number in range(4):
        asked = request(run, 1, run_id=f"tiny-{number}")
        assert node.handle(asked, weights_of(run)).header.code == "policy"
    assert [one.run for one in book(tmp_path).runs()] == ["tiny-0", "tiny-1"]
    nothing_happened(node)


def test_a_damaged_file_is_no_approval(tmp_path: Path) -> None:
    """A file that is cut or belongs to another run lets nothing pass and is named to the owner."""
    run = tiny_run()
    node = tiny_node(tmp_path, run, approval="each-run")
    node.handle(request(run, 1), weights_of(run))
    book(tmp_path).decide(RUN_ID, "approved")
    path = ClientHome(tmp_path).approvals / f"{RUN_ID}.json"
    path.with_name("other-1.json").write_bytes(path.read_bytes())
    out = node.handle(request(run, 1, run_id="other-1"), weights_of(run))
    assert out.header.code == "internal"
    path.write_bytes(path.read_bytes()[:40])
    assert node.handle(request(run, 1), weights_of(run)).header.code == "internal"
    with pytest.raises(ServiceError, match="remove the file"):
        book(tmp_path).decide(RUN_ID, "approved")
    nothing_happened(node)
    new = node.handle(request(run, 1, run_id="later-1"), weights_of(run))
    refused(node, new, "waits")
    assert [one.run for one in book(tmp_path).runs()] == ["later-1"]
    assert [one.name for one in book(tmp_path).damaged()] == ["other-1.json", f"{RUN_ID}.json"]


def test_an_unknown_run_cannot_be_approved(tmp_path: Path) -> None:
    """Nobody approves what has not asked."""
    with pytest.raises(ServiceError, match="client runs"):
        book(tmp_path).decide("never-1", "approved")


def test_an_approved_run_costs_no_more_than_what_was_approved(tmp_path: Path) -> None:
    """Other weights for a round that was answered would be a charge that nobody has seen."""
    run = tiny_run(privacy={"epsilon": 1.0})
    node = tiny_node(tmp_path, run, approval="each-run")
    node.handle(request(run, 1), weights_of(run))
    book(tmp_path).decide(RUN_ID, "approved")
    first = node.handle(request(run, 1), weights_of(run))
    for seed in range(1, 5):
        out = node.handle(request(run, 1), weights_of(run, seed))
        assert (out.header.code, "approved" in out.header.text) == ("policy", True)
    assert node.handle(request(run, 1), weights_of(run)).payload == first.payload
    assert len(node.ledger.entries()) == 1
    assert node.ledger.epsilon() <= PrivacyPlan.from_config(run).epsilon()
