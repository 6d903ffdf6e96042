"""Signed runs: each site gets a request of its own, and only its own answer to it counts."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlatent.server.app import admitted_sites
from fedlatent.server.authority import create_authority
from fedlatent.server.control import Site as Admitted
from fedlatent.server.driver import drive
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry, SiteRound
from fedlatent.server.results import RunFolder
from fedlatent.server.seal import Seal
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.errors import QuorumLost, ServiceError
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.models import build, encoder_state
from fedlatent.shared.signing import ReplySigner, check_request, digest_of, request_name
from fedlatent.shared.wire import PROTOCOL, Delivery, ReplyHeader, RequestHeader, pack, unpack
from tests.server.federation import Clock, Site, grid_of, home_at, refuse, three_sites, tiny_config

RUN = "tiny-1"
NAMES = {11: "north", 12: "east", 13: "south"}
Edit = Callable[[ReplyHeader, Arrays], tuple[ReplyHeader, Arrays]]
Resign = Callable[[Delivery, bytes], tuple[Delivery, bytes]]


@dataclass
class Signed:
    """A server with an authority, and three admitted sites with keys of their own."""

    home: ServerHome
    sites: dict[int, Site]

    def drive(self) -> RunFolder:
        """The whole run."""
        return drive(
            grid_of(self.sites),
            tiny_config(),
            self.home,
            run_id=RUN,
            sites=lambda: admitted_sites(self.home),
            pace=Clock().pace(),
            seal=Seal.of(self.home),
        )

    def outcome(self, site: str, number: int = 1) -> SiteRound:
        """What one site did in one phase."""
        with Registry(self.home.registry) as registry:
            return {row.site: row for row in registry.site_rounds(RUN, number)}[site]


def signed_federation(path: Path) -> Signed:
    """Fresh keys all around."""
    home, sites = home_at(path), three_sites()
    create_authority(home)
    admitted = []
    for node, site in sites.items():
        key = ec.generate_private_key(ec.SECP384R1())
        site.signer = ReplySigner(key=key)
        text = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        admitted.append(
            Admitted(
                name=NAMES[node],
                node_id=str(node),
                fingerprint="f",
                public_key=text.decode(),
                admitted="now",
            )
        )
    home.sites.write_text(json.dumps([asdict(one) for one in admitted]))
    return Signed(home, sites)


@pytest.fixture(scope="module")
def without_east(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of north and south alone."""
    made = signed_federation(tmp_path_factory.mktemp("calm"))
    del made.sites[12]
    return made.drive()


def test_each_site_gets_a_request_that_it_takes(tmp_path: Path) -> None:
    """A signed run completes; every request holds at its site alone, for its arrays."""
    made = signed_federation(tmp_path)
    result = made.drive()
    assert sorted(result.facts["sites"]) == sorted(NAMES.values())  # type: ignore[call-overload]
    authority = x509.load_pem_x509_certificate(made.home.ca_certificate.read_bytes())
    first = digest_of(_first_arrays(made))
    for node, site in made.sites.items():
        assert len(site.requests) == 4
        header = site.requests[0]
        check_request(header, first, authority, NAMES[node], header.expires)
        assert header.expires > header.deadline_s
    signatures = {site.requests[0].signature for site in made.sites.values()}
    assert len(signatures) == 3
    assert {made.outcome(name).status for name in NAMES.values()} == {"ok"}


def _first_arrays(made: Signed) -> Arrays:
    config = tiny_config()
    model = build("gaussian", config.model.options, config.data.shape, config.seed)
    return {key: value.numpy() for key, value in encoder_state(model).items()}


def changed(edit: Edit) -> Resign:
    """Sends other bytes than were signed."""

    def resign(delivery: Delivery, payload: bytes) -> tuple[Delivery, bytes]:
        return delivery, pack(*edit(*unpack(ReplyHeader, payload)))

    return resign


def _unsigned(made: Signed) -> None:
    made.sites[12].signer = None


def _another_key(made: Signed) -> None:
    made.sites[12].signer = ReplySigner(key=ec.generate_private_key(ec.SECP384R1()))


def _another_site(made: Signed) -> None:
    """North, by name and key, answers in the place of east."""
    made.sites[12].name, made.sites[12].signer = "north", made.sites[11].signer


def _changed_arrays(made: Signed) -> None:
    made.sites[12].resign = changed(
        lambda h, a: (h, {k: v + np.float32(0.01) for k, v in a.items()})
    )


def _changed_weight(made: Signed) -> None:
    made.sites[12].resign = changed(lambda h, a: (h.model_copy(update={"records": 201}), a))


def _another_request(made: Signed) -> None:
    """East's own key, under the name of a request that it was never sent."""
    site = made.sites[12]

    def resign(delivery: Delivery, payload: bytes) -> tuple[Delivery, bytes]:
        assert site.signer is not None
        return site.signer.sign(payload, "c" * 64), payload

    site.resign = resign


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (_unsigned, "without a signature"),
        (_another_key, "this key did not sign"),
        (_another_site, "this key did not sign"),
        (_changed_arrays, "this key did not sign"),
        (_changed_weight, "this key did not sign"),
        (_another_request, "names another"),
    ],
)
def test_a_reply_that_is_not_its_sites_does_not_move_the_average(
    tmp_path: Path, without_east: RunFolder, attack: Callable[[Signed], None], words: str
) -> None:
    """It is a named failure of the site each time, and the run is as if the site were away."""
    made = signed_federation(tmp_path)
    attack(made)
    result = made.drive()
    for number in (1, 2, 3):
        row = made.outcome("east", number)
        assert (row.status, row.code) == ("failed", "signature")
        assert words in row.sentence
    assert {made.outcome(name).status for name in ("north", "south")} == {"ok"}
    assert "east" not in result.facts["sites"]  # type: ignore[operator]
    assert result.arrays.keys() == without_east.arrays.keys()
    for key, value in without_east.arrays.items():
        np.testing.assert_array_equal(result.arrays[key], value)
    assert result.released.thresholds == without_east.released.thresholds


def test_an_answer_of_the_attempt_before_is_none(tmp_path: Path) -> None:
    """A phase that is tried again asks anew; the signed answer to its first try does not count."""
    made = signed_federation(tmp_path)
    kept: list[tuple[Delivery, bytes]] = []

    def resign(delivery: Delivery, payload: bytes) -> tuple[Delivery, bytes]:
        kept.append((delivery, payload))
        return kept[0] if unpack(ReplyHeader, payload)[0].round == 1 else kept[-1]

    made.sites[12].resign = resign
    for node in (11, 13):
        made.sites[node].edit = _refuse_first(made.sites[node])
    made.drive()
    row = made.outcome("east")
    assert (row.status, row.code) == ("failed", "signature")
    assert "names another" in row.sentence
    assert made.outcome("east", 2).status == "ok"
    first, second = (one for one in made.sites[11].requests if one.round == 1)
    assert first.model_copy(update={"expires": 0.0, "signature": ""}) == second.model_copy(
        update={"expires": 0.0, "signature": ""}
    )


def _refuse_first(site: Site) -> Edit:
    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        if header.round == 1 and len(site.requests) == 1:
            return refuse("unavailable", "Expected an answer.")(header, arrays)
        return header, arrays

    return edit


def test_a_refusal_without_a_signature_is_no_more_than_silence(tmp_path: Path) -> None:
    """It is believed, and said to be unsigned; one whose signature is wrong is a failure."""
    made = signed_federation(tmp_path)
    for node in (11, 12):
        made.sites[node].edit = refuse("unavailable", "Expected an answer.")
    made.sites[12].signer = None
    made.sites[11].resign = changed(lambda h, a: (h.model_copy(update={"text": "All is well."}), a))
    with pytest.raises(QuorumLost, match=r"north failed \(signature\): .*east refused"):
        made.drive()
    row = made.outcome("east")
    assert (row.status, row.code) == ("refused", "unavailable")
    assert row.sentence == "(not signed) Expected an answer."
    made.sites[11].resign = None
    row = made.outcome("north")
    assert "All is well" not in row.sentence


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda h, a: (h, a | {"more": np.zeros(100_000)}), "size"),
        (lambda h, a: (h, {k: v[..., :1] for k, v in a.items()}), "signature"),
    ],
)
def test_sizes_are_looked_at_before_signatures_and_values_after(
    tmp_path: Path, edit: Edit, code: str
) -> None:
    """One too large is not hashed, one altered not unpacked; a signed one may still fail."""
    made = signed_federation(tmp_path)
    made.sites[11].resign = changed(edit)
    made.sites[12].edit = lambda h, a: (h, {k: v * np.float32("nan") for k, v in a.items()})
    with pytest.raises(QuorumLost, match=rf"north failed \({code}\): .*east failed \(finite\)"):
        made.drive()


def test_a_site_that_is_removed_meanwhile_does_not_count(tmp_path: Path) -> None:
    """The key is looked up when the answer comes."""
    made = signed_federation(tmp_path)
    left = [one for one in json.loads(made.home.sites.read_text()) if one["name"] != "east"]

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        made.home.sites.write_text(json.dumps(left))
        return header, arrays

    made.sites[12].edit = edit
    result = made.drive()
    row = made.outcome("east")
    assert (row.status, row.code) == ("failed", "signature")
    assert "admitted still" in row.sentence
    assert len(made.sites[12].requests) == 1
    assert "east" not in result.facts["sites"]  # type: ignore[operator]


def test_a_server_without_admitted_sites_asks_nobody(tmp_path: Path) -> None:
    """A home with an authority never falls back to nodes that it does not know."""
    made = signed_federation(tmp_path)
    made.home.sites.unlink()
    with pytest.raises(QuorumLost, match="got 0 within"):
        made.drive()
    assert not any(site.requests for site in made.sites.values())


def test_a_seal_needs_a_key_where_there_is_an_authority(tmp_path: Path) -> None:
    """A simulation has no seal; a server's home without the key for requests is said."""
    assert Seal.of(home_at(tmp_path / "simulated")) is None
    home = signed_federation(tmp_path / "server").home
    home.requests_key.unlink()
    with pytest.raises(ServiceError, match="start the server again"):
        Seal.of(home)


def test_names_of_requests_are_those_that_sites_compute(tmp_path: Path) -> None:
    """Both sides name a request alike."""
    made = signed_federation(tmp_path)
    seal = Seal.of(made.home)
    assert seal is not None
    arrays: Arrays = {"encoder.weight": np.ones(3, np.float32)}
    header = RequestHeader(
        protocol=PROTOCOL, run_id=RUN, round=1, kind="train", config=tiny_config(), deadline_s=5
    )
    envelope = seal.envelope(NAMES, 60.0)
    sent = envelope.sign(header, digest_of(arrays), 11)
    signer = made.sites[11].signer
    assert signer is not None
    payload = pack(ReplyHeader.to(header, "north", status="ok", records=1), {})
    signed, sha256 = (
        signer.sign(payload, request_name(sent, digest_of(arrays))),
        sha256_hex(payload),
    )
    assert envelope.check(11, signed, sha256) is None
    assert envelope.check(12, signed, sha256) is not None
    assert seal.envelope(NAMES, 60.0).check(11, signed, sha256) is not None
