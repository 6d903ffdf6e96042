"""A new kind of summary is one class and one row: here it is, and it goes through everything."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.compute import run_plan
from fedlatent.server.results import RunFolder
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.plan import PrivacyPlan, shares_of
from fedlatent.shared.privacy.summaries import SummarySpec
from fedlatent.shared.schedule import count_phases, phases
from fedlatent.shared.summaries import SUMMARIES, Federated, Replies, View, When, WorstCase
from fedlatent.shared.summaries.base import FAR, OTHERS, Summary
from fedlatent.shared.wire import ReplyHeader, RequestHeader, parse_header, unpack
from fedlatent.simulations.audit.nodes import audit_config, summary_noise
from fedlatent.simulations.audit.unit import summary_cases, summary_findings
from fedlatent.simulations.federation import Engine, datasets, simulate
from tests.client.support import request, tiny_node, tiny_run, weights_of
from tests.simulations import support

ENGINES: tuple[Engine, Engine] = ("nodes", "stacked")
FEDERATION = support.tiny_federation(3)


@dataclass(frozen=True, eq=False)
class Balance:
    """How much more often each latent is positive than negative: [k] within noise of [-1, 1]."""

    balance: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """For files and messages."""
        return {"balance": self.balance}


class Signs(Summary):
    """Signs of the latents, added up: a record moves the sum by the root of k at most."""

    kind = "signs"
    stream = 6
    keys = ("summary.signs",)
    label = "signs of the latents"
    pooled = "signs"

    def times(self, run: RunConfig, when: When) -> int:
        """Once at the end."""
        return int(when == "end")

    def share(self, run: RunConfig) -> float:
        """A fixed one."""
        return 0.05

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """A number for each latent."""
        (key,) = self.keys
        sensitivity = float(np.sqrt(latent_dim))
        return SummarySpec(key=key, shape=(latent_dim,), sensitivity=sensitivity, symmetric=False)

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The sum of the signs."""
        total: np.ndarray = np.nan_to_num(np.sign(view.latents)).sum(axis=0)
        return total

    def read(self, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]) -> Balance:
        """From another party."""
        if arrays.keys() != {"balance"} or arrays["balance"].shape != (latent_dim,):
            raise ProtocolError(f"Expected a balance of {latent_dim} latents, got another.")
        return Balance(arrays["balance"])

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """The mean over all records."""
        total = np.sum(replies.sums, axis=0) / sum(replies.records)
        return state.having("signs", Balance(total))

    def example(self, run: RunConfig, latent_dim: int) -> Balance:
        """Nothing known."""
        return Balance(np.zeros(latent_dim))

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """A record that is positive everywhere."""
        latents = rng.normal(0, 1, (OTHERS + 1, latent_dim))
        records = np.zeros((OTHERS + 1, *run.data.shape), np.float32)
        views = []
        for last in (FAR, np.nan):
            seen = latents.copy()
            seen[-1] = last
            views.append(View(records=records, latents=seen))
        yield WorstCase(
            name=self.label, run=run, state=Federated(), present=views[0], absent=views[1]
        )


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One row more in the table, before the threshold, which closes a run.

    Plans are kept by run, so those made with another table are forgotten on either side.
    """
    threshold = SUMMARIES["threshold"]
    monkeypatch.delitem(SUMMARIES, "threshold")
    monkeypatch.setitem(SUMMARIES, "signs", Signs())
    monkeypatch.setitem(SUMMARIES, "threshold", threshold)
    run_plan.cache_clear()
    yield
    run_plan.cache_clear()


def test_the_schedule_and_the_plan_know_it() -> None:
    """It takes place before the threshold, has its share, and training pays for it."""
    run = tiny_run()
    kinds = [phase.kind for phase in phases(run)]
    assert kinds[-2:] == ["signs", "threshold"]
    assert count_phases(run) == len(kinds)
    assert shares_of(run)["signs"] == 0.05
    plan = PrivacyPlan.from_config(run)
    assert plan.multiplier("signs") == plan.multiplier("threshold")
    assert plan.epsilon() <= run.privacy.epsilon
    with pytest.MonkeyPatch.context() as without:
        without.delitem(SUMMARIES, "signs")
        assert PrivacyPlan.from_config(run).noise_multiplier < plan.noise_multiplier


def test_a_message_of_it_is_read_and_one_of_an_unknown_kind_is_not() -> None:
    """The header's kinds are those of the table."""
    header = request(tiny_run(), 4, "signs")
    assert parse_header(RequestHeader, header.model_dump_json()) == header
    with pytest.raises(ProtocolError, match="'train', 'moments'"):
        parse_header(RequestHeader, header.model_dump_json().replace('"signs"', '"sings"'))


def test_a_node_answers_pays_and_answers_again(tmp_path: Path) -> None:
    """What leaves is noisy, charged under its kind, and the same when it is asked for again."""
    run = tiny_run()
    node, arrays = tiny_node(tmp_path, run), weights_of(run)
    (phase,) = (one for one in phases(run) if one.kind == "signs")
    out = node.handle(request(run, phase.number, "signs"), arrays)
    header, left = unpack(ReplyHeader, out.payload)
    assert (header.status, header.kind) == ("ok", "signs"), header.text
    assert left["summary.signs"].shape == (2,)
    assert not np.array_equal(left["summary.signs"], np.rint(left["summary.signs"]))
    (entry,) = node.ledger.entries()
    plan = PrivacyPlan.from_config(run)
    assert (entry.kind, entry.noise_multiplier) == ("signs", plan.multiplier("signs"))
    assert node.handle(request(run, phase.number, "signs"), arrays).payload == out.payload
    assert len(node.ledger.entries()) == 1


def test_a_run_gives_it_on_both_engines(tmp_path: Path) -> None:
    """The server pools and stores it, the result says it, and every site has paid for it."""
    run = support.tiny_run(FEDERATION)
    plan, found = PrivacyPlan.from_config(run), []
    for engine in ENGINES:
        result = simulate(run, datasets(FEDERATION), tmp_path / engine, engine=engine).result
        found.append(RunFolder.load(result.folder).released.parts["signs"].arrays()["balance"])
        facts: Any = result.facts
        assert [one["kind"] for one in facts["rounds"]][-2:] == ["signs", "threshold"]
        spent = [site["epsilon"] for site in facts["sites"].values()]
        assert spent == pytest.approx([plan.epsilon()] * len(FEDERATION.sites), rel=1e-3)
    assert found[0].shape == (3,)
    assert np.abs(found[0]).max() < 1.5
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_the_audit_attacks_it(tmp_path: Path) -> None:
    """Its worst record is as bad as stated, its claim is tight, and a node's noise is right."""
    (case,) = (one for one in summary_cases(0) if one.kind == "signs")
    assert case.moved == pytest.approx(case.spec.sensitivity)
    (found,) = (
        one for one in summary_findings(5000, 0, lambda *_: None) if one.name == Signs.label
    )
    assert found.verdict == "holds", found
    noise = summary_noise(tmp_path, audit_config(), "full", homes=1, runs=12)["signs"].rows
    assert noise.shape == (12, 8)
    assert noise.std() == pytest.approx(1.0, abs=0.3)
