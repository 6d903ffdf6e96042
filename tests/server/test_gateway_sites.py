"""An admitted site at the gateway: it speaks for itself, about its own messages, in its quota."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import ObjectTree

from fedlatent.server.gateway.issued import Book, Issued
from fedlatent.server.gateway.rates import Bucket
from fedlatent.server.quota import ReplyQuota, save_quota
from fedlatent.server.settings import GatewayLimits
from tests.server.fleet import FleetNode, Reply, read_all
from tests.server.gates import QUOTA, Gate, running
from tests.server.stub_link import RUN

GENEROUS = GatewayLimits(messages_per_minute=1000, request_seconds=10)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gateway with two admitted sites."""
    with running(Gate(tmp_path_factory.mktemp("gateway"), GENEROUS)) as made:
        yield made


@pytest.fixture(scope="module")
def ward(gate: Gate) -> Iterator[FleetNode]:
    """An admitted node."""
    with gate.admit("ward-1", 101) as node:
        yield node


@pytest.fixture(scope="module")
def other(gate: Gate) -> Iterator[FleetNode]:
    """Another."""
    with gate.admit("ward-2", 102) as node:
        yield node


def asked(gate: Gate, node: FleetNode) -> Message:
    """A message that ``node`` has been given and has taken."""
    gate.link.give(node.node_id)
    return node.pull()


def content(size: int = 100) -> RecordDict:
    """What an honest reply brings: a header and one array of ``size`` bytes."""
    array = Array(np.frombuffer(np.random.default_rng().bytes(size), np.uint8))
    return RecordDict(
        {"arrays": ArrayRecord({"w": array}), "header": ConfigRecord({"header": "{}"})}
    )


def refused(gate: Gate, status: int, reason: str, act: Callable[[], object]) -> None:
    """``act`` is answered by ``status`` and ``reason``, and the log names both."""
    before = len(gate.link.seen)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        act()
    assert caught.value.response.status_code == status
    assert reason in caught.value.response.text
    assert reason in gate.wait_for_log(reason)
    assert len(gate.link.seen) == before


def test_an_honest_reply_passes(gate: Gate, ward: FleetNode) -> None:
    """A node joins, is given a message, takes it, answers it, and leaves."""
    assert ward.activate() == 101
    assert ward.heartbeat()
    message = asked(gate, ward)
    assert ward.get_run(RUN).run.run_id == RUN
    assert ward.get_fab(RUN, "h").fab.content == b"c"
    reply = ward.reply(message, content())
    ward.send(reply)
    assert set(reply.awaited) == set(reply.objects)
    assert gate.link.received[reply.session] == sum(map(len, reply.objects.values()))


@pytest.mark.parametrize("ask", ["poll", "heartbeat", "activate"])
def test_nobody_asks_as_another(gate: Gate, ward: FleetNode, other: FleetNode, ask: str) -> None:
    """A key asks for its own node alone, whatever the body says."""
    ward.node_id, public, ward.public = other.node_id, ward.public, other.public
    try:
        reason = "it names another key" if ask == "activate" else "it names node 102 as the one"
        refused(gate, 403, reason, getattr(ward, ask))
    finally:
        ward.node_id, ward.public = 101, public
    gate.wait_for_log("WARNING site ward-1 (key ")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"src_node_id": 1}, "it names node 1 as sender"),  # the server's name
        ({"src_node_id": 102}, "it names node 102 as sender"),
        ({"src_node_id": 1, "dst_node_id": 102}, "it names node 1 as sender"),
        ({"dst_node_id": 102}, "it names node 102 as receiver, not the server"),
        ({"dst_node_id": 0}, "it names node 0 as receiver"),
        ({"reply_to_message_id": ""}, "it answers a message that it was not given"),
        ({"reply_to_message_id": "ab" * 32}, "it answers a message that it was not given"),
        ({"run_id": RUN + 1}, f"it answers in run {RUN + 1} what came in run {RUN}"),
        ({"ttl": float("nan")}, "its times are no times"),
        ({"created_at": float("inf")}, "its times are no times"),
    ],
)
def test_replies_say_who_they_are_from(
    gate: Gate, ward: FleetNode, metadata: dict[str, object], reason: str
) -> None:
    """Sender, receiver, message and run of a reply are those of the site's own message."""
    reply = ward.reply(asked(gate, ward), content(), **metadata)
    refused(gate, 403, reason, lambda: ward.announce(reply))


def test_nobody_answers_for_another(gate: Gate, ward: FleetNode, other: FleetNode) -> None:
    """A message that went to one site cannot be answered by another, in whatever name."""
    message = asked(gate, other)
    mine = ward.reply(message, content(), src_node_id=ward.node_id)
    refused(gate, 403, "it answers a message that it was not given", lambda: ward.announce(mine))
    other.send(other.reply(message, content()))


def spoil(reply: Reply, how: str) -> None:
    """Make an announcement wrong."""
    request = reply.request
    head, tree = request.messages_list[0], request.message_object_trees[0]
    match how:
        case "two messages":
            request.messages_list.append(head)
        case "no message":
            request.messages_list.pop()
        case "two trees":
            request.message_object_trees.append(tree)
        case "another root":
            tree.object_id = "cd" * 32
        case "no ids":
            tree.children[0].object_id = "../x"
        case "many objects":
            tree.children.extend(ObjectTree(object_id=f"{n:064x}") for n in range(12))
        case "content":
            head.content.items.add().key = "x" * 10
        case "size":
            head.metadata.group_id = "x" * 20_000
        case "times":
            request.clientapp_runtime_list.extend([1.0, 2.0])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("two messages", "2 messages and 1 trees"),
        ("no message", "0 messages and 1 trees"),
        ("two trees", "1 messages and 2 trees"),
        ("another root", "its objects belong to another message"),
        ("no ids", "its objects have ids that are none"),
        ("many objects", "objects, where a reply has 12 at most"),
        ("content", "its content stands in the message"),
        ("size", "a message of more than 16384 bytes"),
        ("times", "its times are no times"),
    ],
)
def test_announcements_have_one_form(gate: Gate, ward: FleetNode, how: str, reason: str) -> None:
    """One message with one tree of objects, as many as a reply has."""
    reply = ward.reply(asked(gate, ward), content())
    spoil(reply, how)
    refused(gate, 403, reason, lambda: ward.announce(reply))


def test_a_reply_has_no_other_messages_id(gate: Gate, ward: FleetNode) -> None:
    """A reply's id follows from what it says, so that it cannot take over another's upload."""
    message = asked(gate, ward)
    reply = ward.reply(message, content())
    head, tree = reply.request.messages_list[0], reply.request.message_object_trees[0]
    others = (message.metadata.message_id, "cd" * 32, next(iter(reply.objects)))
    for other in (one for one in others if one != head.metadata.message_id):
        request = reply.request.__deepcopy__()
        request.messages_list[0].metadata.message_id = other
        request.message_object_trees[0].object_id = other
        reason = "its id is not that of a message with these objects"
        refused(gate, 403, reason, lambda one=request: ward.client.PushMessages(one))
    flat = [ObjectTree(object_id=one) for one in reply.objects if one != tree.object_id]
    del tree.children[:]
    tree.children.extend(reversed(flat))  # as a node's store has them, in whatever order
    ward.send(reply)


def test_deep_trees_end_at_the_gateway(gate: Gate, ward: FleetNode) -> None:
    """A tree of a hundred storeys is no request."""
    reply = ward.reply(asked(gate, ward), content())
    tree = ObjectTree(object_id="ab" * 32).SerializeToString()
    for _ in range(120):
        tree = b"\x12" + length_of(tree) + tree  # field 2: a child
    body = reply.request.SerializeToString() + b"\x1a" + length_of(tree) + tree
    with ward.connect() as line:
        line.sendall(ward.head("push-messages", len(body), connection="close") + body)
        assert b" 400 " in read_all(line)[:20]


def length_of(data: bytes) -> bytes:
    """The length of a field as protobuf writes it before the field."""
    size, out = len(data), b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size])


def test_one_message_has_one_reply(gate: Gate, ward: FleetNode) -> None:
    """A second reply to a message is refused, the same one or another."""
    message = asked(gate, ward)
    first = ward.reply(message, content())
    ward.send(first)
    reason = "it answers one message a second time"
    refused(gate, 403, reason, lambda: ward.announce(first))
    refused(gate, 403, reason, lambda: ward.announce(ward.reply(message, content())))


def test_two_replies_at_once_are_one(gate: Gate, ward: FleetNode) -> None:
    """Of replies announced at the same moment the server sees one."""
    message = asked(gate, ward)
    results: list[int] = []

    def announce() -> None:
        try:
            ward.announce(ward.reply(message, content()))
            results.append(200)
        except httpx.HTTPStatusError as error:
            results.append(error.response.status_code)

    threads = [threading.Thread(target=announce) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [200, 403, 403, 403, 403, 403]


def test_uploads_belong_to_their_site(gate: Gate, ward: FleetNode, other: FleetNode) -> None:
    """Session and objects of another site's reply are out of reach, and so are unknown objects."""
    theirs = other.announce(other.reply(asked(gate, other), content()))
    mine = ward.announce(ward.reply(asked(gate, ward), content()))
    one = next(iter(theirs.objects))
    refused(
        gate,
        403,
        "it brings an object of an upload that is not its own",
        lambda: ward.push_object(RUN, theirs.session, one, theirs.objects[one]),
    )
    for run, object_id in ((RUN, one), (RUN, "ef" * 32), (RUN + 1, mine.awaited[0])):
        refused(
            gate,
            403,
            "it brings an object that does not belong to its reply",
            lambda run=run, object_id=object_id: ward.push_object(
                run, mine.session, object_id, b"x"
            ),
        )
    refused(gate, 403, "an upload that is not its own", lambda: ward.push_object(RUN, "", one, b""))
    assert other.push_object(RUN, theirs.session, one, theirs.objects[one])


def test_objects_are_for_whom_they_were_given(
    gate: Gate, ward: FleetNode, other: FleetNode
) -> None:
    """A site takes and confirms the objects of its own messages alone."""
    message = gate.link.give(other.node_id)
    other.poll()
    reason = "it asks for an object that it was not given"
    child = hashlib.sha256(message.encode()).hexdigest()
    for one in (message, child):
        refused(gate, 403, reason, lambda one=one: ward.pull_object(RUN, one))
    refused(gate, 403, reason, lambda: other.pull_object(RUN + 1, child))
    reason = "it confirms a message that it was not given"
    refused(gate, 403, reason, lambda: ward.confirm(RUN, message))
    refused(gate, 403, reason, lambda: other.confirm(RUN + 1, message))
    assert other.pull_object(RUN, child) == b""
    other.confirm(RUN, message)


def test_runs_are_for_whom_they_were_given(gate: Gate) -> None:
    """Of a run that it has no message of, a site learns nothing."""
    with gate.admit("idle", 103) as node:
        refused(gate, 403, f"it asks for run {RUN}", lambda: node.get_run(RUN))
        refused(gate, 403, f"it asks for run {RUN}", lambda: node.get_fab(RUN, "h"))


def test_a_reply_ends_at_twice_its_plan(gate: Gate) -> None:
    """Pieces count together; past twice the planned bytes the reply ends, a new one may begin."""
    with gate.admit("verbose", 104) as node:
        reply = node.announce(node.reply(asked(gate, node), content()))
        one, piece = reply.awaited[0], bytes(90_000)
        for _ in range(4):
            assert node.push_object(RUN, reply.session, one, piece)
        reason = "more than 2 x the planned bytes of a reply"
        refused(gate, 413, reason, lambda: node.push_object(RUN, reply.session, one, piece))
        assert gate.link.received[reply.session] <= 2 * QUOTA.bytes
        reason = "no reply of it is under way"
        refused(gate, 403, reason, lambda: node.push_object(RUN, reply.session, one, b""))
        node.send(node.reply(asked(gate, node), content()))
        reason = "its reply has ended: more than 2 x"
        refused(gate, 403, reason, lambda: node.push_object(RUN, reply.session, one, b""))


def test_many_pieces_at_once_count_together(gate: Gate, ward: FleetNode) -> None:
    """Bodies that are still under way are held to what is left, too."""
    reply = ward.announce(ward.reply(asked(gate, ward), content()))
    request = ward.object_request(RUN, reply.session, reply.awaited[0], bytes(90_000))
    body = request.SerializeToString()
    lines = [ward.connect() for _ in range(6)]
    for line in lines:
        line.sendall(ward.head("push-object", len(body), connection="close"))
    time.sleep(0.5)
    statuses = []
    for line in lines:
        with contextlib.suppress(OSError):
            line.sendall(body)
        statuses.append(read_all(line).split(b" ", 2)[1:2])
        line.close()
    assert statuses.count([b"200"]) <= 4
    assert gate.link.received[reply.session] <= 2 * QUOTA.bytes


def test_500_megabytes_end_at_the_gateway(gate: Gate, ward: FleetNode) -> None:
    """One piece of 500 MB, or 500 MB of pieces, end early, and the gateway does not grow."""
    reply = ward.announce(ward.reply(asked(gate, ward), content()))
    before, size = gate.memory(), 500_000_000
    with ward.connect() as line:
        line.sendall(ward.head("push-object", size))
        sent = 0
        try:
            while sent < size:
                line.sendall(bytes(1_000_000))
                sent += 1_000_000
        except OSError:
            pass
    assert sent < 20_000_000  # what fits into the buffers of the kernel
    assert gate.memory() - before < 50_000_000
    gate.wait_for_log("refused push-object: a request body of more than")
    for _ in range(100):  # 5 MB each, as Flower cuts them
        with pytest.raises(httpx.HTTPError):
            ward.push_object(RUN, reply.session, reply.awaited[0], bytes(5_000_000))
    assert gate.link.received[reply.session] <= 2 * QUOTA.bytes
    assert gate.memory() - before < 50_000_000


def test_runs_without_a_quota_take_no_reply(gate: Gate, ward: FleetNode) -> None:
    """Before the driver says what a reply weighs none is taken; a new quota counts at once."""
    message = asked(gate, ward)
    gate.home.quota(RUN).rename(gate.home.quota(RUN).with_name("away"))
    reply = ward.reply(message, content())
    refused(gate, 403, f"the server expects no reply in run {RUN}", lambda: ward.announce(reply))
    save_quota(gate.home, RUN, ReplyQuota(bytes=10, objects=1))
    refused(gate, 403, "objects, where a reply has 1 at most", lambda: ward.announce(reply))
    save_quota(gate.home, RUN, QUOTA)
    ward.send(reply)


def test_a_restart_forgets_nothing(gate: Gate, ward: FleetNode) -> None:
    """After a restart old replies are refused, and messages under way are answered."""
    answered = ward.reply(asked(gate, ward), content())
    ward.send(answered)
    given = asked(gate, ward)
    half = ward.announce(ward.reply(asked(gate, ward), content()))
    one, *rest = half.awaited
    assert ward.push_object(RUN, half.session, one, bytes(250_000))
    gate.stop()
    gate.start()
    refused(gate, 403, "answers one message a second time", lambda: ward.announce(answered))
    for object_id in rest:
        assert ward.push_object(RUN, half.session, object_id, half.objects[object_id])
    refused(
        gate,
        413,
        "more than 2 x the planned bytes",
        lambda: ward.push_object(RUN, half.session, one, bytes(250_000)),
    )
    ward.send(ward.reply(given, content()))


def test_a_reply_that_the_server_missed_may_come_again(gate: Gate, ward: FleetNode) -> None:
    """While the SuperLink is away a reply gets 503; announced again it is taken."""
    reply = ward.reply(asked(gate, ward), content())
    gate.link.stop()
    try:
        with pytest.raises(httpx.HTTPStatusError, match="503"):
            ward.announce(reply)
    finally:
        gate.link.start()
    ward.send(reply)


def test_messages_and_requests_are_counted_by_key(tmp_path: Path) -> None:
    """One site that floods is told to wait, by name; the other is served."""
    limits = GatewayLimits(messages_per_minute=5, requests_per_second=5, burst=60)
    with (
        running(Gate(tmp_path, limits)) as gate,
        gate.admit("flood", 7) as flood,
        gate.admit("calm", 8) as calm,
    ):
        message = asked(gate, flood)
        statuses = []
        for _ in range(12):
            try:
                flood.announce(flood.reply(message, content()))
            except httpx.HTTPStatusError as error:
                statuses.append(error.response.status_code)
        assert statuses.count(503) == 7
        gate.wait_for_log("site flood")
        gate.wait_for_log("refused push-messages: more than 5 messages a minute")
        seen = len(gate.link.seen)
        answers = [outcome(flood.poll) for _ in range(100)]
        assert 503 in answers
        assert len(gate.link.seen) - seen < 100
        gate.wait_for_log("refused pull-messages: more than 5 requests a second")
        assert outcome(calm.poll) == 200
        time.sleep(0.5)
        assert outcome(flood.poll) == 200


def outcome(ask: Callable[[], object]) -> int:
    """The status that a request gets."""
    try:
        ask()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def test_dripping_bodies_wait_for_each_other_alone(tmp_path: Path) -> None:
    """A site's own slow bodies take its own places; memory and other sites do not notice."""
    limits = GatewayLimits(bodies_per_site=2, request_seconds=6.0)
    with (
        running(Gate(tmp_path, limits)) as gate,
        gate.admit("slow", 7) as slow,
        gate.admit("calm", 8) as calm,
    ):
        body = PullMessagesRequest(node=slow.node).SerializeToString()
        lines = [slow.connect() for _ in range(2)]
        for line in lines:
            line.sendall(slow.head("pull-messages", len(body)) + body[:1])
        began = time.monotonic()
        assert outcome(calm.poll) == 200
        assert time.monotonic() - began < 5
        assert outcome(slow.poll) == 200  # when the first two have run out of time
        assert 3.0 < time.monotonic() - began < 25
        for line in lines:
            assert b" 504 " in read_all(line)[:20]
            line.close()


def test_one_site_holds_so_many_connections(tmp_path: Path) -> None:
    """A site's newest connections stay, its oldest go."""
    limits = GatewayLimits(connections_per_site=3)
    with running(Gate(tmp_path, limits)) as gate, gate.admit("ward-1", 7) as node:
        body = PullMessagesRequest(node=node.node).SerializeToString()
        lines = []
        for _ in range(5):
            lines.append(node.connect())
            lines[-1].sendall(node.head("pull-messages", len(body)) + body)
            assert b" 200 " in lines[-1].recv(65536)[:20]
        for line in lines[:2]:
            assert read_all(line) == b""
        for line in lines[2:]:
            line.sendall(node.head("pull-messages", len(body), connection="close") + body)
            assert b" 200 " in read_all(line)[:20]
        for line in lines:
            line.close()


def test_the_book_forgets_what_is_over(tmp_path: Path) -> None:
    """Expired messages are gone, objects of old ones too, and each node has a limit."""
    book = Book(tmp_path / "issued.db")
    now = time.time()
    for number in range(600):
        book.add(
            Issued(message=f"m{number}", node=5, run=1, expires=now + 60, objects=frozenset("ab"))
        )
    book.add(Issued(message="late", node=5, run=1, expires=now - 1))
    assert book.find(5, "late") is None
    assert book.find(5, "m0") is None
    assert book.find(6, "m599") is None
    old, new = book.find(5, "m500"), book.find(5, "m599")
    assert old is not None
    assert new is not None
    assert (old.objects, new.objects) == (frozenset(), frozenset("ab"))
    book.close()
    again = Book(tmp_path / "issued.db")
    assert again.find(5, "m599") == new
    again.close()


def test_a_damaged_book_is_begun_anew(tmp_path: Path) -> None:
    """The gateway starts even after a power cut has torn its file."""
    (tmp_path / "issued.db").write_bytes(b"no database " * 1000)
    book = Book(tmp_path / "issued.db")
    book.add(Issued(message="m", node=5, run=1, expires=time.time() + 60))
    book.close()


def test_buckets_fill_up_with_time() -> None:
    """What was used comes back at the stated rate."""
    bucket = Bucket(per_second=20, burst=2)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    time.sleep(0.08)
    assert [bucket.take() for _ in range(2)] == [True, False]
