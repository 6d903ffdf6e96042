"""The border of a deployed node: nothing but its server's own requests gets as far as a charge."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from fedlatent.client.border import Border
from fedlatent.client.compute import make_noise
from fedlatent.client.home import ClientHome
from fedlatent.client.node import Node, request_digest
from fedlatent.client.policy import NodeConfig
from fedlatent.client.resident import Watchdog, answer
from fedlatent.server.authority import create_authority
from fedlatent.server.home import ServerHome
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.keys import generate_node_key
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.privacy.summaries import LatentDensity
from fedlatent.shared.schedule import Kind
from fedlatent.shared.signing import (
    CLOCK_SLACK_S,
    ReplySigner,
    RequestSigner,
    check_reply,
    digest_of,
    request_name,
)
from fedlatent.shared.wire import (
    PROTOCOL,
    STORED_PROTOCOLS,
    UNSIGNED,
    Delivery,
    ReplyHeader,
    RequestHeader,
    pack,
    parse_header,
    split,
    unpack,
)
from tests.client.support import request, tiny_config, tiny_node, tiny_run, weights_of
from tests.client.test_node import threshold_arrays

NOW = time.time()
RUN = tiny_run()
WEIGHTS = weights_of(RUN)


@dataclass
class Bench:
    """A node behind its border, and the server that it belongs to.

    Attributes:
        node: called "north".
        border: of that node.
        server: signs requests.
        draws: kinds of the requests that drew random numbers.
        deliveries: what was sent, with the packed reply.
    """

    node: Node
    border: Border
    server: RequestSigner
    draws: list[Kind] = field(default_factory=list)
    deliveries: list[tuple[Delivery, bytes]] = field(default_factory=list)

    def signed(
        self,
        header: RequestHeader,
        receiver: str = "north",
        expires: float = NOW + 60,
        arrays: Arrays = WEIGHTS,
    ) -> RequestHeader:
        """The server's request to one site."""
        return self.server.sign(header, digest_of(arrays), receiver, expires)

    def ask(
        self, header: RequestHeader, arrays: Arrays = WEIGHTS, now: float = NOW
    ) -> tuple[ReplyHeader, Arrays]:
        """One request through the border; the answer must be signed for exactly that request."""
        border = replace(self.border, clock=lambda: now)
        data = answer(self.node, Watchdog(), pack(header, arrays), border)
        text, payload = split(data)
        delivery = parse_header(Delivery, text)
        self.deliveries.append((delivery, payload))
        name, key = request_name(header, digest_of(arrays)), self.border.signer.key.public_key()
        assert check_reply(delivery, sha256_hex(payload), key, name) is None
        return unpack(ReplyHeader, payload, STORED_PROTOCOLS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A node of a fresh federation."""
    home = ServerHome(tmp_path / "server")
    home.create()
    create_authority(home)
    generate_node_key(tmp_path / "node-key")
    draws: list[Kind] = []

    def noise(
        run: RunConfig, site: str, number: int, kind: Kind, sealed: bytes | None
    ) -> NoiseSource:
        draws.append(kind)
        return make_noise(run, site, number, kind, sealed)

    return Bench(
        node=tiny_node(tmp_path / "north", RUN, noise),
        border=Border(
            authority=x509.load_pem_x509_certificate(home.ca_certificate.read_bytes()),
            site="north",
            signer=ReplySigner.load(tmp_path / "node-key"),
        ),
        server=RequestSigner.load(home.requests_key, home.requests_certificate),
        draws=draws,
    )


def test_a_request_that_is_not_the_servers_costs_nothing(bench: Bench, tmp_path: Path) -> None:
    """Unsigned, another site's, expired or altered: refused by name before load, draw or charge."""
    asked = request(RUN, 1)
    good = bench.signed(asked)
    greedy = good.model_copy(update={"round": 2})
    moved = {key: value + np.float32(1e-7) for key, value in WEIGHTS.items()}
    tries = [
        (asked, WEIGHTS, NOW, "signed"),
        (bench.signed(asked, "east"), WEIGHTS, NOW, "to site 'north', got one to 'east'"),
        (good, WEIGHTS, NOW + 60 + CLOCK_SLACK_S + 1, "expired"),
        (greedy, WEIGHTS, NOW, "changed on its way"),
        (good, moved, NOW, "changed on its way"),
        (good, {}, NOW, "changed on its way"),
    ]
    for header, arrays, now, words in tries:
        reply, released = bench.ask(header, arrays, now)
        assert (reply.status, reply.code, released) == ("refused", "signature", {})
        assert words in reply.text
        assert (reply.records, reply.epsilon) == (0, None)
    assert bench.node.ledger.entries() == []
    assert bench.draws == []
    assert not list((tmp_path / "north" / "outbox").glob("*/*"))
    assert not list((tmp_path / "north" / "store").glob("*/*"))
    reply, _ = bench.ask(good, WEIGHTS, NOW + 60 + CLOCK_SLACK_S)
    assert (reply.status, len(bench.node.ledger.entries())) == ("ok", 1)


def test_a_request_signed_anew_gets_the_same_bytes_for_one_charge(bench: Bench) -> None:
    """What is kept is sent as it is; each sending has a signature for the request it answers."""
    first = bench.signed(request(RUN, 1))
    later = bench.signed(request(RUN, 1, deadline_s=7.0), expires=NOW + 999)
    _, arrays = bench.ask(first)
    bench.ask(later)
    (one, payload), (two, again) = bench.deliveries
    assert one.request != two.request
    assert one.signature != two.signature
    assert arrays.keys() == WEIGHTS.keys()
    (entry,) = bench.node.ledger.entries()
    assert (entry.state, bench.draws) == ("released", ["train"])
    assert payload == again == bench.node.door.stored(entry)
    assert sha256_hex(payload) == entry.sha256


SPOKEN = f'"protocol":{PROTOCOL}'.encode()


def test_refusals_of_the_node_are_signed_and_those_to_garbage_are_not(bench: Bench) -> None:
    """Policy and budget speak with the site's key; what cannot be read can be named by nobody."""
    greedy = bench.signed(request(tiny_run(privacy={"epsilon": 9.0}), 1, run_id="greedy-1"))
    assert bench.ask(greedy)[0].code == "policy"
    for data in (b"garbage", pack(request(RUN, 1), {}).replace(SPOKEN, b'"protocol":3')):
        text, payload = split(answer(bench.node, Watchdog(), data, bench.border))
        reply, _ = unpack(ReplyHeader, payload)
        assert (reply.code, parse_header(Delivery, text)) == ("protocol", UNSIGNED)
    assert f"version {PROTOCOL}, got 3; update the older side" in reply.text


def test_digest_is_that_of_protocol_3_however_it_was_signed(bench: Bench) -> None:
    """Signatures change nothing of what is asked, and an update makes no new charge."""
    asked = request(RUN, 1)
    signed = bench.signed(asked)
    assert request_digest(signed, WEIGHTS) == request_digest(asked, WEIGHTS)
    packed = pack(asked, {key: WEIGHTS[key] for key in sorted(WEIGHTS)})
    text = asked.model_dump_json().encode()
    new = b',"deadline_s":30.0,"receiver":"","expires":0.0,"certificate":"","signature":""}'
    assert text.endswith(new)
    old = text.removesuffix(new).replace(SPOKEN, b'"protocol":3') + b',"deadline_s":1.0}'
    body = packed[8 + len(text) :]
    lengths = len(old).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    assert request_digest(signed, WEIGHTS) == sha256_hex(lengths + old + body)


def pack_of_4(header: ReplyHeader, arrays: Arrays) -> bytes:
    """A reply as protocol 4 packed and kept it."""
    _, body = split(pack(header, arrays))
    text = header.model_dump_json()[:-1].encode() + b',"request":"","signature":""}'
    return len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little") + text + body


@pytest.mark.parametrize(("protocol", "packed"), [(3, pack), (4, pack_of_4)])
def test_answers_kept_by_earlier_protocols_are_sent_again_as_they_are(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    protocol: int,
    packed: Callable[[ReplyHeader, Arrays], bytes],
) -> None:
    """After an update in mid-run a node repeats what left, and builds on its old moments."""
    with monkeypatch.context() as old:
        old.setattr("fedlatent.shared.wire.PROTOCOL", protocol)
        old.setattr("fedlatent.client.door.pack", packed)
        for header in (request(RUN, 1), request(RUN, 4, "moments")):
            assert bench.node.handle(header, WEIGHTS).header.status == "ok"
    entries = bench.node.ledger.entries()
    stored = [bench.node.door.stored(entry) for entry in entries]
    assert all(f'"protocol":{protocol}'.encode() in data for data in stored)
    assert [b"signature" in data for data in stored] == [protocol == 4] * 2
    reply, arrays = bench.ask(bench.signed(request(RUN, 1)))
    delivery, payload = bench.deliveries[-1]
    assert (reply.status, reply.protocol, delivery.protocol) == ("ok", protocol, PROTOCOL)
    assert payload == stored[0]
    assert arrays.keys() == WEIGHTS.keys()
    assert bench.node.ledger.entries() == entries
    assert bench.node.door.stored(entries[0]) == stored[0]
    density = LatentDensity(count=9.0, mean=np.zeros(2), covariance=np.eye(2), within=np.eye(2))
    asked = threshold_arrays(WEIGHTS, density)
    reply, _ = bench.ask(bench.signed(request(RUN, 5, "threshold"), arrays=asked), asked)
    assert reply.status == "ok", reply.text


def test_a_home_with_a_server_has_a_border(tmp_path: Path) -> None:
    """Only a node file without a server goes without; a lost or open file is said."""
    server = ServerHome(tmp_path / "server")
    server.create()
    create_authority(server)
    home = ClientHome(tmp_path / "home")
    home.create()
    plain = tiny_config(RUN)
    config = NodeConfig.model_validate(
        plain.model_dump(by_alias=True) | {"server": {"address": "fed:8443"}}
    )
    assert Border.of(home, plain) is None
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        Border.of(home, config)
    home.ca_certificate.write_bytes(server.ca_certificate.read_bytes())
    with pytest.raises(ConfigError, match="readable key file"):
        Border.of(home, config)
    generate_node_key(home.node_key)
    border = Border.of(home, config)
    assert border is not None
    assert border.site == "north"
    home.node_key.chmod(0o644)
    with pytest.raises(ConfigError, match="0644"):
        Border.of(home, config)
