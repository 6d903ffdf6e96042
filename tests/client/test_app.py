"""The Flower app: thin, and silent about failures."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedlatent.client.app import app
from fedlatent.client.home import ClientHome
from fedlatent.client.link import serve
from fedlatent.client.resident import Watchdog, answer
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import HEARTS_SCHEMA
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.records import read_reply, reply_of, to_records
from fedlatent.shared.sockets import prepare_socket
from fedlatent.shared.wire import ReplyHeader
from fedlatent.simulations.grid import InProcessGrid, by_handlers
from tests.client.support import request, tiny_node, tiny_run, weights_of
from tests.client.test_resident import REPOSITORY


def send(content: RecordDict, node_config: dict[str, str | int]) -> tuple[ReplyHeader, Arrays]:
    """Hand one message to the app as a grid does, and read its reply."""
    return reply_of(sent(content, node_config))


def sent(content: RecordDict, node_config: dict[str, str | int]) -> RecordDict:
    """The same, unread."""
    context = Context(
        run_id=1, node_id=7, node_config=dict(node_config), state=RecordDict(), run_config={}
    )
    handlers = {7: lambda message: app(message=message, context=context)}
    grid = InProcessGrid(handlers, by_handlers(handlers))
    (reply,) = grid.send_and_receive([Message(content, 7, "train", group_id="1")])
    return reply.content


def test_app_needs_no_pytorch() -> None:
    """Importing the app brings in neither PyTorch nor Opacus nor pandas."""
    code = (
        "import sys, fedlatent.client.app; "
        "print([m for m in ('torch', 'opacus', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "text", ['{"protocol":' + "9" * 5_000 + "}", "[" * 60_000, '{"protocol": NaN}', "", "\x00"]
)
def test_hostile_header_is_refused_in_words(text: str) -> None:
    """Whatever a server writes as its header, the app answers with a refusal."""
    content = RecordDict({"header": ConfigRecord({"json": text}), "arrays": ArrayRecord({})})
    header, arrays = send(content, {"site": "ward-1"})
    assert (header.status, header.code, header.site) == ("refused", "protocol", "ward-1")
    assert not arrays


def test_message_goes_to_the_resident_and_back(tmp_path: Path) -> None:
    """A message is answered by the node behind the socket, byte for byte."""
    import socket

    run = tiny_run()
    node = tiny_node(tmp_path / "home", run)
    path = prepare_socket(ClientHome(tmp_path / "home").socket)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    watchdog = Watchdog()
    threading.Thread(
        target=serve, args=(listener, lambda data: answer(node, watchdog, data)), daemon=True
    ).start()
    content = to_records(request(run, 1), weights_of(run))
    content = sent(content, {"socket": str(path)})
    (entry,) = node.ledger.entries()
    assert read_reply(content)[1] == node.door.stored(entry)
    header, arrays = reply_of(content)
    assert (header.status, header.site, header.records) == ("ok", "north", 200)
    assert arrays.keys() == weights_of(run).keys()
    assert [entry.state for entry in node.ledger.entries()] == ["released"]


def test_absent_resident_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a resident the server hears 'unavailable' and no path of this machine."""
    monkeypatch.setattr("fedlatent.client.app._MARGIN_S", 0.0)
    run = tiny_run()
    content = to_records(request(run, 1, deadline_s=0.4), weights_of(run))
    header, arrays = send(content, {"socket": str(tmp_path / "none.sock"), "site": "north"})
    assert (header.status, header.code, header.site) == ("refused", "unavailable", "north")
    assert str(tmp_path) not in header.text
    assert arrays == {}


def test_malformed_message_is_a_refusal() -> None:
    """A message that is no request is refused with the reason."""
    header, _ = send(RecordDict({"other": ConfigRecord({"a": 1})}), {"partition-id": 0})
    assert (header.status, header.code) == ("refused", "protocol")


def test_misconfigured_node_is_a_refusal() -> None:
    """A SuperNode without socket and partition sends a code, not its error's text."""
    run = tiny_run()
    header, _ = send(to_records(request(run, 1), weights_of(run)), {})
    assert header.code == "internal"
    assert "partition" not in header.text


def test_plain_simulation_builds_its_own_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a socket a synthetic patient answers, and keeps its state under FEDLATENT_HOME."""
    monkeypatch.setenv("FEDLATENT_HOME", str(tmp_path))
    run = RunConfig(
        name="hearts",
        data=HEARTS_SCHEMA,
        **tiny_run().model_dump(include={"model", "training", "privacy"}),
    )
    content = to_records(request(run, 1, run_id="hearts-1"), weights_of(run))
    first, arrays = send(content, {"partition-id": 3})
    assert (first.status, first.site) == ("ok", "patient-3"), first.text
    assert arrays.keys() == weights_of(run).keys()
    assert first.records > 300
    assert (tmp_path / "sim" / "hearts-1" / "3" / "ledger.db").exists()
    other, _ = send(content, {"partition-id": 4})
    assert other.site == "patient-4"
    with pytest.raises(ProtocolError):
        read_reply(content)
