"""Replies are looked at piece by piece; none is waited for, and each limit holds before content."""

import json
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.superlink.grid import HttpGrid

from fedlatent.server.inbox import (
    CALL_S,
    OBJECTS_A_LOOK,
    Arrived,
    GridInbox,
    LinkInbox,
    is_deployed,
    open_inbox,
)
from fedlatent.server.quota import ReplyQuota
from fedlatent.server.screening import ScreeningFailure
from fedlatent.shared.errors import ServiceError
from fedlatent.simulations.grid import InProcessGrid, by_handlers
from tests.server.federation import Clock
from tests.server.link import Announced, Link, asked, status_error

QUOTA = ReplyQuota(bytes=20_000, objects=20)
FAR = 1e9


def reply(identifier: str, size: int = 4, arrays: int = 2) -> Message:
    """An honest reply to message ``identifier``; ``arrays`` arrays of ``size`` numbers."""
    rng = np.random.default_rng(size)
    record = ArrayRecord({f"a{n}": Array(rng.normal(size=size)) for n in range(arrays)})
    content = RecordDict(
        {
            "header": ConfigRecord({"json": "{}"}),
            "arrays": record,
            "metrics": MetricRecord({"num-examples": 3}),
        }
    )
    return Message(content, reply_to=asked(7, identifier))


def inbox_of(link: Link, clock: Clock | None = None) -> LinkInbox:
    """An inbox over ``link``."""
    clock = clock or Clock()
    return LinkInbox(link, 5, QUOTA, lambda: clock.now)


def code_of(found: object) -> str:
    """The code of a failure."""
    assert isinstance(found, ScreeningFailure)
    assert found.status == "failed"
    return found.code


def test_whole_reply_comes_at_once() -> None:
    """A reply that is all there is handed out with its id and contents, and is confirmed."""
    message = reply("m1")
    link = Link({"m1": Announced.of(message)})
    inbox = inbox_of(link)
    found = inbox.look("m1", FAR)
    assert isinstance(found, Message)
    assert found.metadata.message_id == message.metadata.message_id
    assert found.metadata.src_node_id == 7
    np.testing.assert_array_equal(
        found.content.array_records["arrays"]["a1"].numpy(),
        message.content.array_records["arrays"]["a1"].numpy(),
    )
    assert link.calls[0] == "PullMessages"
    assert link.calls[-1] == "ConfirmMessageReceived"
    assert inbox.look("m1", FAR) is None


def test_equal_arrays_share_their_objects() -> None:
    """Arrays of the same bytes are one object in two places, and come as two arrays."""
    message = reply("m1")
    message.content["arrays"] = ArrayRecord({k: Array(np.zeros(3)) for k in "abc"})
    found = inbox_of(Link({"m1": Announced.of(message)})).look("m1", FAR)
    assert isinstance(found, Message)
    assert set(found.content.array_records["arrays"]) == set("abc")


def test_errors_of_flower_come_as_messages() -> None:
    """A reply that carries an error is a message with that error."""
    message = Message(Error(2, "x"), reply_to=asked(7, "m1"))
    found = inbox_of(Link({"m1": Announced.of(message)})).look("m1", FAR)
    assert isinstance(found, Message)
    assert found.error.code == 2


def test_missing_object_blocks_nobody() -> None:
    """One that never comes costs each look one call; what came is told, and others are read."""
    held, whole = Announced.of(reply("held")), Announced.of(reply("whole", size=5))
    link = Link({"held": held, "whole": whole}, hidden={held.tree.children[0].object_id})
    inbox = inbox_of(link)
    assert inbox.look("held", FAR) is None
    assert isinstance(inbox.look("whole", FAR), Message)
    count = len(held.objects)
    size = sum(len(v) for k, v in held.objects.items() if k not in link.hidden)
    assert inbox.arrived("held") == Arrived(objects=count - 1, of=count, bytes=size)
    assert inbox.arrived("whole") is None
    link.calls.clear()
    inbox.moved = False
    assert inbox.look("held", FAR) is None
    assert link.calls == ["PullObject"]
    assert not inbox.moved
    link.hidden.clear()
    assert isinstance(inbox.look("held", FAR), Message)


def test_dripping_reply_is_taken_when_its_last_drop_is_there() -> None:
    """Objects that come one for each look add up; each look that brought one says so."""
    announced = Announced.of(reply("m1"))
    link = Link({"m1": announced}, hidden=set(announced.objects))
    inbox = inbox_of(link)
    for object_id in announced.objects:
        inbox.moved = False
        assert inbox.look("m1", FAR) is None
        link.hidden.discard(object_id)
        if len(link.hidden):
            inbox.moved = False
            inbox.look("m1", FAR)
            assert inbox.moved
    assert isinstance(inbox.look("m1", FAR), Message)


def test_oversized_reply_fails_before_the_rest_is_pulled() -> None:
    """Past the planned bytes nothing more is asked for, and the SuperLink may delete the reply."""
    announced = Announced.of(reply("m1", size=2_000, arrays=4))
    link = Link({"m1": announced})
    assert code_of(inbox_of(link).look("m1", FAR)) == "size"
    assert link.calls.count("PullObject") < len(announced.objects)
    assert link.calls[-1] == "ConfirmMessageReceived"


def test_too_many_objects_fail_before_any_pull() -> None:
    """A tree of more places than planned is refused on sight, wide or deep."""
    wide = Announced.of(reply("m1"))
    wide.tree.children.extend(ObjectTree(object_id=f"{n:064x}") for n in range(10_000))
    deep = Announced.of(reply("m2"))
    below = deep.tree
    for number in range(50):
        below = below.children.add(object_id=f"{number:064x}")
    link = Link({"m1": wide, "m2": deep})
    inbox = inbox_of(link)
    assert [code_of(inbox.look(one, FAR)) for one in ("m1", "m2")] == ["size", "size"]
    assert "PullObject" not in link.calls


def test_array_that_repeats_a_piece_is_not_unpacked() -> None:
    """A small reply whose array names one piece thousands of times would fill the memory."""
    message = reply("m1")
    array = message.content.array_records["arrays"]["a0"]
    chunk = ArrayChunk(memoryview(bytes(5_000)))
    facts = {
        "dtype": "float32",
        "shape": [1],
        "stype": "numpy.ndarray",
        "arraychunk_ids": [0] * 999,
    }
    body = json.dumps(facts).encode()
    content = f"Array {chunk.object_id} {len(body)}".encode() + b"\x00" + body
    _check_replaced(message, array.object_id, content, chunk)


def _check_replaced(message: Message, old: str, content: bytes, chunk: ArrayChunk) -> None:
    """Put another object in place of one, with all the ids above it, and see it refused."""
    announced = Announced.of(message)
    new, objects = {old: get_object_id(content)}, {}
    objects[get_object_id(content)] = content
    objects[chunk.object_id] = chunk.deflate()
    for key, value in announced.objects.items():
        if key == old:
            continue
        head, _, body = value.partition(b"\x00")
        kind, children, _ = head.decode().split(" ")
        for was, now in new.items():
            body, children = body.replace(was.encode(), now.encode()), children.replace(was, now)
        changed = f"{kind} {children} {len(body)}".encode() + b"\x00" + body
        objects[get_object_id(changed)] = changed
        new[key] = get_object_id(changed)
    announced.objects = objects
    root = new[announced.tree.object_id]
    parts = [ObjectTree(object_id=one) for one in objects if one != root]
    announced.tree.CopyFrom(ObjectTree(object_id=root, children=parts))
    announced.proto.metadata.message_id = root
    assert code_of(inbox_of(Link({"m1": announced})).look("m1", FAR)) == "size"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"no object at all",
        lambda content: content + b"x",
        lambda content: b"Message  " + b"9" * 5_000 + b"\x00",
        lambda content: b"Message " + b"a" * 64 + b" 0\x00",
        lambda content: b"RecordDict  2\x00{}",
        lambda content: b"\xff\xfe 3\x00abc",
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_garbage_is_a_failure_of_its_site(spoil: Callable[[bytes], bytes], *, named: bool) -> None:
    """Objects of any bytes, under their own hash or another's, never raise."""
    announced = Announced.of(reply("m1"))
    content = spoil(announced.objects[announced.tree.object_id])
    root = get_object_id(content) if named else announced.tree.object_id
    announced.objects[root] = content
    announced.tree.object_id = announced.proto.metadata.message_id = root
    link = Link({"m1": announced, "m2": Announced.of(reply("m2"))})
    inbox = inbox_of(link)
    assert code_of(inbox.look("m1", FAR)) == "unreadable"
    assert isinstance(inbox.look("m2", FAR), Message)


def test_sound_object_under_the_hash_of_another_is_refused() -> None:
    """What the SuperLink hands out must be what the tree named."""
    announced, other = Announced.of(reply("m1")), Announced.of(reply("m1", size=5))
    one, another = (
        next(k for k, v in sent.objects.items() if v.startswith(b"ArrayChunk"))
        for sent in (announced, other)
    )
    announced.objects[one] = other.objects[another]
    assert code_of(inbox_of(Link({"m1": announced})).look("m1", FAR)) == "unreadable"


def test_reply_of_many_objects_takes_turns() -> None:
    """One look asks for a bounded number of objects, so that the next reply has its turn."""
    link = Link({"m1": Announced.of(reply("m1", arrays=OBJECTS_A_LOOK))})
    inbox = LinkInbox(link, 5, ReplyQuota(bytes=100_000, objects=200), lambda: 0.0)
    looks = 1
    while inbox.look("m1", FAR) is None:
        assert link.calls.count("PullObject") <= looks * OBJECTS_A_LOOK
        assert inbox.moved
        looks += 1
    assert looks >= 2


def test_reply_to_another_message_is_refused() -> None:
    """What is announced for one message and answers another inside is not taken for either."""
    announced = Announced.of(reply("other"))
    announced.proto.metadata.reply_to_message_id = "m1"
    assert code_of(inbox_of(Link({"m1": announced})).look("m1", FAR)) == "unreadable"


def test_given_up_upload_is_incomplete() -> None:
    """An object that the SuperLink no longer waits for ends its reply."""
    announced = Announced.of(reply("m1"))
    link = Link({"m1": announced}, gone={announced.tree.children[0].object_id})
    assert code_of(inbox_of(link).look("m1", FAR)) == "incomplete"


@pytest.mark.parametrize(
    "error", [status_error(500), httpx.ReadTimeout("x"), httpx.ConnectError("x")]
)
@pytest.mark.parametrize("call", ["PullMessages", "PullObject", "ConfirmMessageReceived"])
def test_busy_superlink_is_asked_again(call: str, error: httpx.HTTPError) -> None:
    """A SuperLink that fails once costs a look at most, and no site is blamed."""
    link = Link({"m1": Announced.of(reply("m1"))}, faults=[(call, error)])
    inbox = inbox_of(link)
    found = inbox.look("m1", FAR)
    if found is None:
        assert inbox.unheard("m1")
        found = inbox.look("m1", FAR)
    assert isinstance(found, Message)
    assert not inbox.unheard("m1")


def test_refusal_of_the_superlink_is_an_error() -> None:
    """What will not pass by itself ends the run as before."""
    link = Link(faults=[("PullMessages", status_error(404))])
    with pytest.raises(httpx.HTTPStatusError):
        inbox_of(link).look("m1", FAR)


def test_each_call_ends_with_the_look() -> None:
    """Calls may last to the end of the look and no longer; past it nothing more is pulled."""
    clock = Clock()
    announced = Announced.of(reply("m1"))
    link = Link({"m1": announced}, on_call=lambda: clock.sleep(4.0))
    assert inbox_of(link, clock).look("m1", 11.0) is None
    assert link.calls == ["PullMessages", "PullObject", "PullObject"]
    assert link.limits == [CALL_S, 7.0, 3.0]


def test_grids_are_told_apart() -> None:
    """Flower's deployed grid is looked at piece by piece; one without its client is refused."""
    local = InProcessGrid([7], by_handlers({}))
    assert not is_deployed(local)
    assert isinstance(open_inbox(local, QUOTA), GridInbox)
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    grid.set_run(local.run)
    assert is_deployed(grid)
    inbox = open_inbox(grid, QUOTA)
    assert isinstance(inbox, LinkInbox)
    assert inbox.look("m1", 0.0) is None
    assert inbox.unheard("m1")

    class Other(HttpGrid):
        _runtime_client = None  # type: ignore[assignment]

    other = Other("127.0.0.1:1", insecure=True, token="t")
    other.set_run(local.run)
    with pytest.raises(ServiceError, match="pinned version of flwr"):
        open_inbox(other, QUOTA)
