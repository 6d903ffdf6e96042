"""An admitted site that does what it likes, against the real server and two honest nodes.

It speaks Flower's own client, signs in with its own key, and says whatever it wants. Each thing
that it tries must be refused by name, leave the honest sites' charges as they are, and let the run
end in time.
"""

import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedlatent.client.home import ClientHome
from fedlatent.client.local import open_ledger, read_dataset
from fedlatent.client.policy import NodeConfig
from fedlatent.server.control import Submission
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry, SiteRound
from fedlatent.server.service import ServerService, init_server
from fedlatent.shared.config import RunConfig
from fedlatent.shared.keys import generate_node_key
from fedlatent.shared.processes import marked_processes
from fedlatent.shared.records import ARRAYS, HEADER, from_records, reply_records
from fedlatent.shared.schedule import phases
from fedlatent.shared.signing import ReplySigner, digest_of, request_name
from fedlatent.shared.wire import ReplyHeader, deliver, pack
from tests.server.federation import packed
from tests.server.fleet import FleetNode, read_all
from tests.server.services import RUN, Federation

NAME = "ward-3"
HONEST = ("ward-1", "ward-2")
DEADLINE_S = 30.0
SERVER_NODE = 1
NOWHERE = "a" * 64
MEGABYTE = 1_000_000

Act = Callable[["Hostile", Message], None]


@dataclass
class Hostile:
    """The site: a raw client, what it does with each request in turn, and what came of it."""

    node: FleetNode
    key: Path
    others: list[int]
    acts: list[Act] = field(default_factory=list)
    kept: list[RecordDict] = field(default_factory=list)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    growth: dict[str, float] = field(default_factory=dict)
    services: Path = Path()

    def serve(self, over: threading.Event) -> None:
        """Take requests until it is over; an excuse where no act is left."""
        while not over.is_set():
            try:
                message = self.node.pull(1.0)
            except AssertionError:
                continue  # nothing came
            except httpx.HTTPError:
                over.wait(1.0)
                continue
            try:
                (self.acts.pop(0) if self.acts else excuse)(self, message)
            except BaseException:
                self.failures.append(traceback.format_exc())

    def live(self, over: threading.Event) -> None:
        """Give signs of life."""
        while not over.wait(10.0):
            with suppress(httpx.HTTPError):
                self.node.heartbeat()

    def tried(self, what: str, call: Callable[[], object]) -> int:
        """Note the status of one thing that was tried; 200 where it passed."""
        try:
            call()
            status = 200
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
        self.statuses.setdefault(what, []).append(status)
        return status


def refusal(message: Message) -> ReplyHeader:
    """A refusal in words, unsigned."""
    header, _ = from_records(message.content)
    return ReplyHeader.to(header, NAME, status="refused", code="busy", text="not now")


def refused(message: Message) -> RecordDict:
    """The same as it is sent."""
    return packed(refusal(message), {})


def excuse(site: Hostile, message: Message) -> None:
    """Refuse in words, so that the phase may end."""
    site.node.send(site.node.reply(message, refused(message)))


def pose_as_others(site: Hostile, message: Message) -> None:
    """Speak as another site and as the server, and reach for what is not its own."""
    node, run = site.node, message.metadata.run_id
    content = refused(message)
    for other in site.others:
        named = node.reply(message, content, src_node_id=other)
        site.tried("another's name in the message", lambda one=named: node.announce(one))
        lied = node.reply(message, content)
        lied.request.node.node_id = other
        site.tried("another's name in the request", lambda one=lied: node.announce(one))
        commanded = node.reply(
            message,
            message.content,
            src_node_id=SERVER_NODE,
            dst_node_id=other,
            reply_to_message_id="",
        )
        site.tried("the server's name", lambda one=commanded: node.announce(one))
        sent = node.reply(message, content, dst_node_id=other)
        site.tried("a message to another site", lambda one=sent: node.announce(one))
    elsewhere = node.reply(message, content, reply_to_message_id=NOWHERE)
    site.tried("a reply to nothing", lambda: node.announce(elsewhere))
    site.tried("another's object", lambda: node.pull_object(run, NOWHERE))
    site.tried("another's message", lambda: node.confirm(run, NOWHERE))
    site.tried("another's upload", lambda: node.push_object(run, "session", NOWHERE, b"x"))
    signed_refusal(site, message)


def signed_refusal(site: Hostile, message: Message) -> None:
    """A proper refusal, kept to be sent again later."""
    header, arrays = from_records(message.content)
    name = request_name(header, digest_of(arrays))
    payload = pack(refusal(message), {})
    content = reply_records(deliver(payload, ReplySigner.load(site.key).sign(payload, name)))
    site.kept.append(content)
    site.node.send(site.node.reply(message, content))


def send_the_old_one(site: Hostile, message: Message) -> None:
    """Answer with what was a proper answer to an earlier request."""
    site.node.send(site.node.reply(message, site.kept[0]))


def flood(site: Hostile, message: Message) -> None:
    """Answer, then announce far more often than anyone may, at some 10,000 a minute."""
    reply = site.node.reply(message, refused(message))
    site.node.send(reply)
    for _ in range(200):
        site.tried("flood", lambda: site.node.announce(reply))


def announce_alone(site: Hostile, message: Message) -> None:
    """Announce a reply and send nothing of it."""
    site.node.announce(site.node.reply(message, refused(message)))


def digits(site: Hostile, message: Message) -> None:
    """A header that is one number of 5,000 digits."""
    text = '{"protocol": ' + "9" * 5000 + "}"
    records = {HEADER: ConfigRecord({"json": text}), ARRAYS: ArrayRecord()}
    site.node.send(site.node.reply(message, RecordDict(records)))


def drip_and_swell(site: Hostile, message: Message) -> None:
    """Send a reply byte by byte, and 500 MB beside it."""
    node, run = site.node, message.metadata.run_id
    _, arrays = from_records(message.content)
    large = {key: np.zeros_like(value) for key, value in arrays.items()}
    reply = node.announce(node.reply(message, packed(refusal(message), large)))
    first = reply.awaited[0]
    body = node.object_request(run, reply.session, first, reply.objects[first])
    dripping = threading.Thread(
        target=lambda: node.drip("push-object", body.SerializeToString(), piece=8, pause_s=1.0),
        daemon=True,
    )
    dripping.start()
    before = {pid: memory_mb(pid) for pid in marked_processes(site.services)}
    sent, piece = 0, b"x" * MEGABYTE
    with node.connect() as line:
        line.sendall(node.head("push-object", 500 * MEGABYTE, connection="close"))
        with suppress(OSError):
            while sent < 500:
                line.sendall(piece)
                sent += 1
        answer = read_all(line)
    site.statuses["500 MB"] = [int(answer.split()[1]) if answer else 0]
    site.statuses["500 MB, sent"] = [sent]
    for pid, command in marked_processes(site.services).items():
        if pid in before:
            site.growth[command] = memory_mb(pid) - before[pid]
    time.sleep(DEADLINE_S)  # the next request comes after the deadline


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def config(rounds: int) -> RunConfig:
    """Three sites, of which two are enough."""
    changes = {
        "training": {"rounds": rounds, "steps_per_round": 2},
        "federation": {
            "nodes": 3,
            "quorum": 2,
            "round_deadline_s": DEADLINE_S,
            "join_timeout_s": 90.0,
        },
    }
    return RunConfig.parse(RUN | changes, "test")


@dataclass
class Border:
    """The server, its honest nodes and the hostile one."""

    federation: Federation
    hostile: Hostile

    @property
    def home(self) -> ServerHome:
        """Of the server."""
        return self.federation.service.home

    def run(self, rounds: int, acts: list[Act]) -> tuple[Submission, dict[int, dict[str, str]]]:
        """Run to the end while the hostile site acts; the code of each site by phase."""
        self.hostile.acts[:] = acts
        control = self.federation.service.control
        done = control.wait(control.submit(config(rounds)).run_id, 600)
        assert self.hostile.failures == []
        with Registry(self.home.registry) as registry:
            told: dict[int, dict[str, str]] = {}
            for one in registry.site_rounds(done.run_id):
                told.setdefault(one.number, {})[one.site] = _word(one)
            for phase in registry.rounds(done.run_id):
                assert phase.finished is not None
                lasted = phase.finished - phase.started  # with what it costs to send
                assert lasted < DEADLINE_S + 15.0
                assert phase.good == 2
        return done, told

    def charges(self, run_id: str) -> list[list[str]]:
        """State of each ledger entry of a run, for each honest site."""
        found = []
        for name in HONEST:
            home = ClientHome(self.federation.folder / name)
            node = NodeConfig.load(home.config)
            records = len(read_dataset(home, node.data).normals())
            ledger, _ = open_ledger(home, node, records)
            found.append([one.state for one in ledger.entries() if one.run_id == run_id])
            assert {one.run_id for one in ledger.entries()} <= self.known()
        return found

    def known(self) -> set[str]:
        """All runs that the server has."""
        return {one.run_id for one in self.federation.service.control.submissions()}


def _word(one: SiteRound) -> str:
    return one.status if one.status == "ok" else one.code


@pytest.fixture(scope="module")
def border(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Border]:
    """A server with two honest nodes, and one that is admitted and hostile."""
    folder = tmp_path_factory.mktemp("border")
    init_server(ServerHome(folder / "server"), port=0)
    with ServerService(ServerHome(folder / "server")) as service:
        federation = Federation(folder, service)
        nodes = [federation.node(name) for name in HONEST]
        key = folder / "hostile"
        site = service.control.admit(NAME, generate_node_key(key))
        others = [int(one.node_id) for one in service.control.sites() if one.name != NAME]
        for node in nodes:
            node.wait_online(240)
        over = threading.Event()
        with FleetNode(service.address, service.home.ca_certificate, key) as raw:
            assert raw.activate() == int(site.node_id)
            hostile = Hostile(raw, key, others, services=service.home.services)
            threads = [
                threading.Thread(target=target, args=(over,), daemon=True)
                for target in (hostile.serve, hostile.live)
            ]
            for thread in threads:
                thread.start()
            yield Border(federation, hostile)
            over.set()
            for thread in threads:
                thread.join(30)
        for node in nodes:
            node.stop()


def test_a_hostile_site_is_refused_by_name_and_stops_nothing(border: Border) -> None:
    """Everything that it tries in one run, phase by phase; the honest sites finish in time."""
    hostile, home = border.hostile, border.home
    acts = [pose_as_others, flood, announce_alone, drip_and_swell, digits]
    done, told = border.run(len(acts), acts)
    assert (done.state, done.reason) == ("completed", "")
    assert all(phase[name] == "ok" for phase in told.values() for name in HONEST)
    assert [told[number][NAME] for number in sorted(told)] == [
        "busy",
        "busy",
        "incomplete",
        "incomplete",
        "unreadable",
        "left-out",
        "left-out",
    ]
    forged = {
        key: value for key, value in hostile.statuses.items() if not key.startswith(("flood", "5"))
    }
    assert len(forged) == 8
    assert {status for found in forged.values() for status in found} <= {401, 403}, forged
    floods = hostile.statuses["flood"]
    assert 200 not in floods
    assert floods.count(503) > 100  # the rate, before anything is read
    assert hostile.statuses["500 MB"] in ([413], [0])  # cut off while it sent
    assert hostile.statuses["500 MB, sent"][0] < 10
    assert len(hostile.growth) >= 4
    assert max(hostile.growth.values()) < 50.0, hostile.growth
    count = len(phases(config(len(acts))))
    assert border.charges(done.run_id) == [["released"] * count] * 2
    log = (home.services / "gateway" / "log").read_text()
    for words in ("names node", NAME):
        assert words in log


def test_an_old_reply_answers_nothing(border: Border) -> None:
    """What was signed for an earlier request is refused, and the site may go on in another run."""
    done, told = border.run(1, [send_the_old_one])
    assert done.state == "completed"
    assert [told[number][NAME] for number in sorted(told)] == ["signature", "busy", "busy"]
    assert border.charges(done.run_id) == [["released"] * 3] * 2


def claim(site: Hostile, message: Message, named: list[str]) -> None:
    """Say of objects that they consist of one that there is not, and send nothing."""
    for _ in range(20):
        reply = site.node.reply(message, refused(message))
        tree = reply.request.message_object_trees[0]
        below = [ObjectTree(object_id=NOWHERE)]
        tree.children.extend(ObjectTree(object_id=one, children=below) for one in named)
        if site.tried("claim", lambda one=reply: site.node.announce(one)) == 200:
            return
        time.sleep(0.3)  # the server still has them from this phase


def claim_what_the_server_sends(site: Hostile, message: Message) -> None:
    """Claim an array of this phase, which comes again in the next."""
    objects = get_all_nested_objects(message)
    claim(site, message, [one for one, item in objects.items() if isinstance(item, Array)][:1])


def test_false_words_about_objects_stop_nobody(border: Border) -> None:
    """Who knows the name of an object may say what is false of it, and hurts itself alone.

    Those of another site's reply nobody knows: each holds what that site drew or signed.
    """
    done, told = border.run(1, [claim_what_the_server_sends] * 2)
    assert done.state == "completed"
    assert all(phase[name] == "ok" for phase in told.values() for name in HONEST)
    assert 200 in border.hostile.statuses["claim"]
    assert border.charges(done.run_id) == [["released"] * 3] * 2
