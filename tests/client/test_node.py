"""The round logic of a node, through its door."""

import itertools
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlatent.client.compute import make_noise
from fedlatent.client.door import Outgoing
from fedlatent.client.home import ClientHome
from fedlatent.client.local import assemble
from fedlatent.client.node import Node, request_digest
from fedlatent.shared.arrays import Arrays, add_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.models import build_model, encoder_state, load_encoder
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import NoiseSource, RngName, SecureNoise, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import HISTOGRAMS_KEY, MOMENTS_KEY, LatentDensity
from fedlatent.shared.schedule import phases
from fedlatent.shared.wire import PROTOCOL, Kind, ReplyHeader, unpack
from tests.client.support import (
    RECORDS,
    RUN_ID,
    request,
    tiny_config,
    tiny_node,
    tiny_records,
    tiny_run,
    weights_of,
)

RADIUS = summaries.default_radius(2)


def arrays_of(outgoing: Outgoing) -> Arrays:
    """The arrays of a reply that must not be a refusal."""
    assert outgoing.header.status == "ok", outgoing.header.text
    return unpack(ReplyHeader, outgoing.payload)[1]


def density_of(moments: np.ndarray, run: RunConfig) -> summaries.LatentDensity:
    """The density a server makes of one client's moments."""
    multiplier = PrivacyPlan.from_config(run).multiplier("moments")
    return summaries.latent_density([moments], RADIUS, multiplier)


def threshold_arrays(weights: Arrays, density: summaries.LatentDensity) -> Arrays:
    """The arrays of a threshold request."""
    return {**weights, **{"density." + k: v for k, v in density.arrays().items()}}


def run_whole(node: Node, run: RunConfig) -> list[Outgoing]:
    """All phases of a run with one node, as a server with plain averaging drives it."""
    weights: Arrays = weights_of(run)
    out: list[Outgoing] = []
    for number in range(1, run.training.rounds + 1):
        out.append(node.handle(request(run, number), weights))
        weights = arrays_of(out[-1])
    out.append(node.handle(request(run, run.training.rounds + 1, "moments"), weights))
    density = density_of(arrays_of(out[-1])[MOMENTS_KEY], run)
    asked = request(run, run.training.rounds + 2, "threshold")
    out.append(node.handle(asked, threshold_arrays(weights, density)))
    return out


def test_whole_run_spends_exactly_its_plan(tmp_path: Path) -> None:
    """A whole run releases encoders, moments and histograms and spends what was planned."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    out = run_whole(node, run)
    assert [set(arrays_of(o)) for o in out[:3]] == [set(weights_of(run))] * 3
    assert arrays_of(out[3])[MOMENTS_KEY].shape == (3, 3)
    assert arrays_of(out[4])[HISTOGRAMS_KEY].shape == (2, 128)
    plan = PrivacyPlan.from_config(run)
    assert out[-1].header.epsilon == pytest.approx(plan.epsilon(), abs=1e-9)
    assert 3.9 < plan.epsilon() <= 4.0
    assert all(o.header.records == RECORDS for o in out)
    assert [o.header.noise_multiplier for o in out] == [
        *[plan.noise_multiplier] * 3,
        plan.multiplier("moments"),
        plan.multiplier("threshold"),
    ]


def test_only_the_encoder_leaves_but_all_of_the_model_learns(tmp_path: Path) -> None:
    """Encoder and decoder both move in training; no decoder array is in the reply."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    sent = weights_of(run)
    got = arrays_of(node.handle(request(run, 1), sent))
    assert all(key.startswith("encoder.") for key in got)
    assert all(not np.array_equal(got[key], sent[key]) for key in got)
    state = node.store.load(RUN_ID, 2, lambda entry: True)
    assert state is not None
    initial = build_model(run).state_dict()
    assert all(not torch.equal(value, initial[key]) for key, value in state.decoder.items())
    assert state.decoder.keys() | got.keys() == initial.keys()


def test_repeated_request_costs_nothing_and_gets_the_same_bytes(tmp_path: Path) -> None:
    """The same request again, with whatever deadline, is answered from the store."""
    run = tiny_run(privacy={"rng": "secure"})
    node = tiny_node(tmp_path, run)
    first = node.handle(request(run, 1), weights_of(run))
    again = node.handle(request(run, 1, deadline_s=5.0), weights_of(run))
    fresh = tiny_node(tmp_path, run).handle(request(run, 1), weights_of(run))
    assert again.payload == first.payload
    assert fresh.payload == first.payload
    assert len(node.ledger.entries()) == 1


def test_other_weights_in_the_same_round_are_charged(tmp_path: Path) -> None:
    """The same round asked with other weights is another release."""
    run = tiny_run()
    node = tiny_node(tmp_path, run, max_epsilon=50.0)
    first = node.handle(request(run, 1), weights_of(run))
    second = node.handle(request(run, 1), weights_of(run, seed=1))
    assert first.header.epsilon is not None
    assert second.header.epsilon is not None
    assert second.header.epsilon > first.header.epsilon


class PowerCut(BaseException):
    """Stands for kill -9: nothing in the node may catch it."""


class Failing:
    """A noise source that cuts the power after some draws."""

    rng: RngName = "simulation"

    def __init__(self, source: NoiseSource, draws: int) -> None:
        self._source = source
        self._left = draws

    def uniform(self, size: int) -> np.ndarray:
        """Draw, or die."""
        self._left -= 1
        if self._left < 0:
            raise PowerCut
        return self._source.uniform(size)

    def normal(self, size: int) -> np.ndarray:
        """Draw."""
        return self._source.normal(size)


def test_crash_in_training_costs_one_charge(tmp_path: Path) -> None:
    """A node that dies mid-training and is asked again charges the round once."""
    run = tiny_run()

    def failing(
        run: RunConfig, site: str, round: int, kind: Kind, sealed: bytes | None
    ) -> NoiseSource:
        return Failing(make_noise(run, site, round, kind), 2)

    with pytest.raises(PowerCut):
        tiny_node(tmp_path, run, failing).handle(request(run, 1), weights_of(run))
    node = tiny_node(tmp_path, run)
    assert [entry.state for entry in node.ledger.entries()] == ["reserved"]
    out = node.handle(request(run, 1), weights_of(run))
    plan = PrivacyPlan.from_config(run)
    assert out.header.epsilon == pytest.approx(node.ledger.epsilon())
    assert [entry.steps for entry in node.ledger.entries()] == [plan.steps_per_round]


def test_unreleased_training_is_never_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state saved by an attempt that died before its release has no part in later rounds."""
    run = tiny_run(privacy={"rng": "secure"})
    node = tiny_node(tmp_path, run)
    arrays_of(node.handle(request(run, 1), weights_of(run)))
    kept = node.store.load(RUN_ID, 2, lambda entry: True)

    def cut(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(node.ledger, "released", cut)
        with pytest.raises(PowerCut):
            node.handle(request(run, 2), weights_of(run, seed=1))
    assert (tmp_path / "store" / RUN_ID / "round-000002-2.safetensors").exists()
    assert [entry.state for entry in node.ledger.entries()] == ["released", "reserved"]
    used = node._state(RUN_ID, 3)
    assert used is not None
    assert kept is not None
    for key, value in kept.decoder.items():
        assert torch.equal(used.decoder[key], value)


def test_retry_starts_from_the_round_before(tmp_path: Path) -> None:
    """A round asked again with other weights does not build on its own first answer."""
    run = tiny_run()
    straight, again = tiny_node(tmp_path / "a", run), tiny_node(tmp_path / "b", run, max_epsilon=50)
    straight.handle(request(run, 1), weights_of(run))
    again.handle(request(run, 1), weights_of(run))
    again.handle(request(run, 2), weights_of(run, seed=7))
    one = arrays_of(straight.handle(request(run, 2), weights_of(run, seed=1)))
    two = arrays_of(again.handle(request(run, 2), weights_of(run, seed=1)))
    for key, value in one.items():
        np.testing.assert_array_equal(two[key], value)


def test_missed_rounds_are_no_harm(tmp_path: Path) -> None:
    """A node that missed rounds goes on with the decoder it has."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    node.handle(request(run, 1), weights_of(run))
    assert node.handle(request(run, 3), weights_of(run, seed=1)).header.status == "ok"


def test_simulation_noise_depends_on_site_round_and_purpose(tmp_path: Path) -> None:
    """Simulated noise is a function of seed, site, round and kind; secure noise of nothing."""
    run = tiny_run()
    places: list[tuple[str, int, Kind]] = [
        ("north", 1, "train"),
        ("south", 1, "train"),
        ("north", 2, "train"),
        ("north", 1, "moments"),
    ]
    draws = [make_noise(run, *place).normal(4) for place in places]
    assert all(not np.allclose(a, b) for a, b in itertools.combinations(draws, 2))
    expected = SimulationNoise(run.seed, zlib.crc32(b"north"), 1, 0).normal(4)
    np.testing.assert_array_equal(draws[0], expected)
    assert isinstance(make_noise(tiny_run(privacy={"rng": "secure"}), *places[0]), SecureNoise)
    one = tiny_node(tmp_path / "a", run).handle(request(run, 1), weights_of(run))
    two = tiny_node(tmp_path / "b", run).handle(request(run, 1), weights_of(run))
    assert one.payload == two.payload


def exact_run() -> RunConfig:
    """A run without noise, whose summaries can be compared with exact ones."""
    return tiny_run(privacy={"mechanism": "none"})


def latents_of(run: RunConfig, weights: Arrays) -> np.ndarray:
    """Latent means of the node's records under received weights."""
    model = build_model(run).eval()
    load_encoder(model, {key: torch.from_numpy(value) for key, value in weights.items()})
    records = run.data.preprocess(tiny_records())
    with torch.no_grad():
        return model.encode(torch.from_numpy(records))[0].double().numpy()


def test_moments_are_of_the_received_encoder(tmp_path: Path) -> None:
    """Moments are those of the records under the encoder in the request, not the local one."""
    run = exact_run()
    node = tiny_node(tmp_path, run, allow_non_private=True)
    node.handle(request(run, 1), weights_of(run))
    final = weights_of(run, seed=5)
    out = node.handle(request(run, 4, "moments"), final)
    expected = summaries.moments(latents_of(run, final), RADIUS)
    np.testing.assert_allclose(arrays_of(out)[MOMENTS_KEY], expected)
    assert out.header.epsilon is None
    assert out.header.noise_multiplier == 0.0


def test_threshold_recentres_on_the_released_mean(tmp_path: Path) -> None:
    """The second histogram is centred on the mean that left, which noise has moved."""
    private = tiny_run()
    node = tiny_node(tmp_path, private)
    final = weights_of(private, seed=5)
    released = arrays_of(node.handle(request(private, 4, "moments"), final))[MOMENTS_KEY]
    center = summaries.client_mean(released, RADIUS)
    latents = latents_of(private, final)
    assert np.abs(center - latents.mean(axis=0)).max() > 1e-3
    density = summaries.latent_density([summaries.moments(latents, RADIUS)], RADIUS, 0.0)
    asked = request(private, 5, "threshold")
    noisy = arrays_of(node.handle(asked, threshold_arrays(final, density)))[HISTOGRAMS_KEY]
    plan = PrivacyPlan.from_config(private)
    expected = summaries.noisy_sum(
        summaries.histograms(
            summaries.squared_distance(latents, density.mean, density.precision(recentred=False)),
            summaries.squared_distance(latents, center, density.precision(recentred=True)),
        ),
        summaries.threshold_spec(),
        plan.multiplier("threshold"),
        make_noise(private, "north", 5, "threshold"),
    )
    np.testing.assert_allclose(noisy, expected)


def test_threshold_leaves_material_for_a_site_bundle(tmp_path: Path) -> None:
    """After the threshold the store holds all a site bundle needs."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    out = run_whole(node, run)
    material = node.store.load_site(RUN_ID)
    assert material.config == run
    assert material.epsilon == pytest.approx(out[-1].header.epsilon)
    assert material.records == RECORDS
    final = arrays_of(out[2])
    for key, value in final.items():
        np.testing.assert_array_equal(material.encoder[key], value)
    state = node.store.load(RUN_ID, 4, lambda entry: True)
    assert state is not None
    for key, tensor in state.decoder.items():
        np.testing.assert_array_equal(material.decoder[key], tensor.numpy())
    # What stays may be exact, and is drawn to what was released where records are few.
    latents = latents_of(run, final)
    exact = summaries.latent_density([summaries.moments(latents, RADIUS)], RADIUS, 0.0)
    np.testing.assert_allclose(material.center, exact.mean)
    distance = np.linalg.norm(material.density.within - exact.covariance)
    assert distance > 0


@pytest.mark.parametrize("kind", ["mixture", "threshold"])
def test_a_summary_cannot_be_made_to_fail_for_one_record(tmp_path: Path, kind: Kind) -> None:
    """Tiny covariances, under which the farthest record alone overflows, get the same yes."""
    run = tiny_run(sharing="summary", summaries={"components": 1, "em_rounds": 1})
    number = next(phase.number for phase in phases(run) if phase.kind == kind)
    unit = np.eye(2)
    for name, drop in (("present", False), ("away", True)):
        node = tiny_node(tmp_path / name, run, caps={"smallest_eigenvalue": 1e-320})
        clipped = summaries.clip_rows(latents_of(run, weights_of(run))[: len(node.records)], RADIUS)
        mean = -50.0 * clipped[0] / np.linalg.norm(clipped[0])
        square = ((clipped - mean) ** 2).sum(axis=1)
        last, before = np.argsort(square)[[-1, -2]]
        if drop:
            node.records = node.records[[i for i in range(len(node.records)) if i != last]]
        tiny = (square[last] + square[before]) / 2 / np.finfo(np.float64).max * unit
        density = LatentDensity(count=1.0, mean=mean, covariance=tiny, within=tiny)
        mixture = LatentMixture(weights=np.ones(1), means=mean[None], covariances=tiny[None])
        arrays = {
            **weights_of(run),
            **add_prefix("density.", density.arrays()),
            **(add_prefix("mixture.", mixture.arrays()) if kind == "mixture" else {}),
        }
        node.handle(request(run, 1, "moments"), weights_of(run))
        assert node.handle(request(run, number, kind), arrays).header.status == "ok"


def _bad_weights() -> dict[str, Arrays]:
    good = weights_of(tiny_run())
    key = next(iter(good))
    return {
        "missing": {k: v for k, v in good.items() if k != key},
        "surplus": {**good, "encoder.9.weight": np.zeros(1, np.float32)},
        "decoder": {**good, "decoder.0.weight": np.zeros((6, 2), np.float32)},
        "shape": {**good, key: good[key][:-1]},
        "nan": {**good, key: np.full_like(good[key], np.nan)},
        "overflow": {**good, key: np.full(good[key].shape, 1e300)},
        "integers": {**good, key: good[key].astype(np.int64)},
    }


BAD_WEIGHTS = _bad_weights()


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_are_refused_without_charge(tmp_path: Path, name: str) -> None:
    """Weights that are not this model's encoder are refused in words and cost nothing."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    out = node.handle(request(run, 1), BAD_WEIGHTS[name])
    code = "policy" if name == "overflow" else "protocol"
    assert (out.header.status, out.header.code) == ("refused", code)
    assert node.ledger.entries() == []


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"sharing": "full"}, "policy"),
        ({"privacy": {"epsilon": 6.0}}, "policy"),
        ({"privacy": {"mechanism": "none"}}, "policy"),
        ({"data": {"upper": 9.0}}, "policy"),
        ({"privacy": {"epsilon": 1e-4}}, "budget"),
        ({"model": {"options": {"depth": 3}}}, "protocol"),
        ({"model": {"family": "unknown"}}, "protocol"),
    ],
)
def test_unfit_run_is_refused_without_charge(
    tmp_path: Path, sections: dict[str, Any], code: str
) -> None:
    """A run that the policy or the code does not hold is refused in words and costs nothing."""
    node = tiny_node(tmp_path, tiny_run())
    out = node.handle(request(tiny_run(**sections), 1), weights_of(tiny_run()))
    assert (out.header.status, out.header.code) == ("refused", code)
    assert out.header.text
    assert node.ledger.entries() == []


def test_second_run_must_fit_what_is_left(tmp_path: Path) -> None:
    """The first request of a run is refused when its whole plan passes the life budget."""
    run = tiny_run(privacy={"epsilon": 4.9})
    node = tiny_node(tmp_path, run)
    node.handle(request(run, 1), weights_of(run))
    node.handle(request(run, 2), weights_of(run, seed=1))
    other = tiny_run(name="other", privacy={"epsilon": 4.9})
    out = node.handle(request(other, 1, run_id="other-1"), weights_of(run))
    assert (out.header.code, len(node.ledger.entries())) == ("budget", 2)


def test_round_numbers_end_with_the_plan(tmp_path: Path) -> None:
    """A round past the plan is refused."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    places: list[tuple[int, Kind]] = [(4, "train"), (6, "moments")]
    for number, kind in places:
        out = node.handle(request(run, number, kind), weights_of(run))
        assert out.header.code == "protocol"


def test_run_may_not_change_its_configuration(tmp_path: Path) -> None:
    """A run that comes back with more steps is refused."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    node.handle(request(run, 1), weights_of(run))
    other = tiny_run(training={"steps_per_round": 5})
    out = node.handle(request(other, 2), weights_of(run))
    assert (out.header.code, len(node.ledger.entries())) == ("policy", 1)


def test_other_protocol_is_refused(tmp_path: Path) -> None:
    """One of another protocol version is refused with both named, whatever else is wrong with it.

    The second run is also more than the policy allows.
    """
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    for asked in (run, tiny_run(privacy={"epsilon": 1000.0})):
        header = request(asked, 1).model_copy(update={"protocol": 1})
        out = node.handle(header, weights_of(run))
        assert out.header.code == "protocol"
        assert f"version {PROTOCOL}, got 1" in out.header.text


def test_threshold_needs_own_moments_and_a_density(tmp_path: Path) -> None:
    """A threshold before this node's moments, or with a broken density, costs nothing."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    weights = weights_of(run)
    good = summaries.LatentDensity(
        count=9.0, mean=np.zeros(2), covariance=np.eye(2), within=np.eye(2)
    )
    asked = request(run, 5, "threshold")
    out = node.handle(asked, threshold_arrays(weights, good))
    assert (out.header.code, "moments" in out.header.text) == ("protocol", True)
    moments = node.handle(request(run, 4, "moments"), weights)
    assert moments.header.status == "ok"
    for field, value in (("covariance", -np.eye(2)), ("mean", np.zeros(3))):
        broken = {**threshold_arrays(weights, good), "density." + field: value}
        assert node.handle(asked, broken).header.code == "protocol"
    assert len(node.ledger.entries()) == 1


def test_full_sharing_takes_and_gives_all_keys(tmp_path: Path) -> None:
    """With both sides' consent the whole model travels, and the received decoder is used."""
    run = tiny_run(sharing="full")
    node = tiny_node(tmp_path, run, allowed_sharing=["encoder", "full"])
    sent = {key: value.numpy() for key, value in build_model(run).state_dict().items()}
    first = arrays_of(node.handle(request(run, 1), sent))
    assert first.keys() == sent.keys()
    zeroed = {k: np.zeros_like(v) if k.startswith("decoder") else v for k, v in sent.items()}
    second = arrays_of(node.handle(request(run, 2), zeroed))
    moved = max(float(np.abs(v).max()) for k, v in second.items() if k.startswith("decoder"))
    assert 0 < moved < 0.1


def test_known_anomalies_are_left_out(tmp_path: Path) -> None:
    """Records labelled as anomalies are not trained on and not counted."""
    run = tiny_run()
    schema = run.data
    label = np.zeros(RECORDS, np.uint8)
    label[:30] = 1
    dataset = Dataset(records=schema.preprocess(tiny_records()), schema=schema, label=label)
    node = assemble(tiny_config(run), dataset, ClientHome(tmp_path))
    out = node.handle(request(run, 1), weights_of(run))
    assert out.header.records == RECORDS - 30


@pytest.mark.parametrize("kind", ["train", "moments"])
def test_crafted_weights_do_not_single_out_a_record(tmp_path: Path, kind: Kind) -> None:
    """Weights near the limits of float32 give a finite release, as for any other record."""
    run = tiny_run(privacy={"sample_rate": 0.9})
    weights = {key: np.full_like(value, 3e38) for key, value in weights_of(run).items()}
    node = tiny_node(tmp_path, run, caps={"largest_weight": 3.4e38})
    out = node.handle(request(run, 1 if kind == "train" else 4, kind), weights)
    if kind == "moments":
        assert np.isfinite(arrays_of(out)[MOMENTS_KEY]).all()
    else:
        assert out.header.status == "ok"


def test_unexpected_failure_sends_no_text(tmp_path: Path) -> None:
    """A programming error inside becomes a fixed sentence."""

    def broken(
        run: RunConfig, site: str, round: int, kind: Kind, sealed: bytes | None
    ) -> NoiseSource:
        raise RuntimeError("record 7 is [0.1, 0.2]")

    run = tiny_run()
    out = tiny_node(tmp_path, run, broken).handle(request(run, 1), weights_of(run))
    assert out.header.code == "internal"
    assert b"record 7" not in out.payload


def test_digest_depends_on_everything_but_the_deadline() -> None:
    """Requests that ask for the same have one digest, whatever the order of their arrays."""
    run = tiny_run()
    weights = weights_of(run)
    base = request_digest(request(run, 1), weights)
    turned = dict(reversed(weights.items()))
    assert request_digest(request(run, 1, deadline_s=3.0), turned) == base
    assert request_digest(request(run, 2), weights) != base
    assert request_digest(request(run, 1, "moments"), weights) != base
    assert request_digest(request(run, 1, run_id="other"), weights) != base
    assert request_digest(request(run, 1), weights_of(run, seed=1)) != base


def test_encoder_state_of_the_release_loads(tmp_path: Path) -> None:
    """What a node releases loads into a fresh model."""
    run = tiny_run()
    out = tiny_node(tmp_path, run).handle(request(run, 1), weights_of(run))
    model = build_model(run)
    load_encoder(model, {key: torch.from_numpy(v) for key, v in arrays_of(out).items()})
    assert encoder_state(model).keys() == arrays_of(out).keys()


def test_power_cut_at_any_write_costs_one_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write a crash hits, the same request then gets one paid, stored, logged answer."""
    run = tiny_run(privacy={"rng": "secure"})
    real = os.fsync
    for cut in itertools.count():
        folder = tmp_path / str(cut)
        node = tiny_node(folder, run)
        writes = itertools.count()

        def fsync(descriptor: int, cut: int = cut, writes: Iterator[int] = writes) -> None:
            if next(writes) == cut:
                raise PowerCut
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                node.handle(request(run, 1), weights_of(run))
            except PowerCut:
                survived = False
            else:
                survived = True
        again = tiny_node(folder, run)
        out = again.handle(request(run, 1), weights_of(run))
        (entry,) = again.ledger.entries()
        assert (out.header.status, entry.state) == ("ok", "released")
        assert again.door.stored(entry) == out.payload
        assert entry.sha256 is not None
        assert entry.sha256 in (folder / "releases.jsonl").read_text().splitlines()[-1]
        assert again.handle(request(run, 2), weights_of(run, seed=1)).header.status == "ok"
        if survived:
            break
    assert cut >= 6  # state, payload and two log lines, with their folders


def test_what_is_sent_again_is_logged_with_what_is_spent_by_now(tmp_path: Path) -> None:
    """The bytes are those that left; no line of the journal names less than the ledger."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    first = node.handle(request(run, 1), weights_of(run))
    node.handle(request(run, 2), weights_of(run))
    assert node.handle(request(run, 1), weights_of(run)).payload == first.payload
    lines = [json.loads(line) for line in (tmp_path / "releases.jsonl").read_text().splitlines()]
    assert lines[-1]["what"] == "sent again"
    assert lines[-1]["epsilon"] == node.ledger.epsilon() > lines[0]["epsilon"]
