"""What Flower itself does wrong, shown on Flower as it is shipped.

Each test here fails once Flower has mended the fault: then the guard that ``docs/flower.md`` names
beside it can go.
"""

import contextlib
import datetime
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    RegisterNodeRequest,
    RegisterNodeResponse,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetResponse,
)
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.run import Run
from flwr.supercore.superexec.executor import ExecutionSpec, SubprocessExecutor
from flwr.superlink.grid import HttpGrid
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from google.protobuf.message import Message as Protobuf
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedlatent.server.authority import create_authority, issue_certificate
from fedlatent.server.home import ServerHome
from fedlatent.server.service import free_port
from fedlatent.shared.supervisor import child_environment, program

MEDIA = {"content-type": "application/protobuf", "accept": "application/protobuf"}


@dataclass
class PlainLink:
    """A SuperLink as Flower's documentation starts one: loopback, TLS, node authentication."""

    client: httpx.Client

    def post(self, path: str, message: Protobuf, headers: dict[str, str] | None = None) -> int:
        """Send one request; returns the status."""
        body = message.SerializeToString()
        return self.client.post(path, content=body, headers=MEDIA | (headers or {})).status_code


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainLink]:
    """The SuperLink, started without a launcher of ours."""
    folder = tmp_path_factory.mktemp("plain")
    home = ServerHome(folder / "server")
    home.create()
    create_authority(home)
    issue_certificate(home, [])
    port = free_port()
    argv = [
        program("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(home.ca_certificate)),
        *("--ssl-certfile", str(home.certificate)),
        *("--ssl-keyfile", str(home.certificate_key)),
        *("--isolation", "process", "--enable-supernode-auth"),
    ]
    environment = child_environment() | {"FLWR_HOME": str(folder / "flower")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for(port)
        context = ssl.create_default_context(cafile=str(home.ca_certificate))
        base = f"https://127.0.0.1:{port}"
        with httpx.Client(base_url=base, verify=context, timeout=10) as client:
            yield PlainLink(client)
    finally:
        process.terminate()
        process.wait(60)


def wait_for(port: int) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + 240  # a busy machine
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def signed_headers(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """What a SuperNode shows with each request."""
    timestamp = datetime.datetime.now(datetime.UTC).isoformat()
    signature = key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": b64encode(public_bytes(key)).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(signature).decode(),
    }


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half as Flower sends it."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_the_control_interface_asks_for_no_login(plain: PlainLink) -> None:
    """Whoever reaches the port may list, start and stop runs: hence the Unix socket."""
    assert plain.post("/v1/control/list-runs", ListRunsRequest()) == 200


def test_a_key_that_was_unregistered_is_never_taken_again(plain: PlainLink) -> None:
    """Who is removed is shut out for ever: hence ``server remove`` leaves Flower's entry alone."""
    key = ec.generate_private_key(ec.SECP384R1())
    register = RegisterNodeRequest(public_key=public_bytes(key))
    path, body = "/v1/control/register-node", register.SerializeToString()
    answer = RegisterNodeResponse.FromString(
        plain.client.post(path, content=body, headers=MEDIA).content
    )
    unregister = UnregisterNodeRequest(node_id=answer.node_id)
    assert plain.post("/v1/control/unregister-node", unregister) == 200
    assert plain.post(path, register) != 200


def test_a_nodes_signature_covers_a_time_and_nothing_else(plain: PlainLink) -> None:
    """Headers of one request are good for any other within five minutes: hence TLS, always."""
    key = ec.generate_private_key(ec.SECP384R1())
    register = RegisterNodeRequest(public_key=public_bytes(key))
    assert plain.post("/v1/control/register-node", register) == 200
    headers = signed_headers(key)
    activate = ActivateNodeRequest(public_key=public_bytes(key), heartbeat_interval=30)
    assert plain.post("/v1/fleet/activate-node", activate, headers) == 200
    assert plain.post("/v1/fleet/activate-node", activate) == 401
    assert plain.post("/v1/fleet/activate-node", activate, headers) in (200, 412)


def test_a_node_may_name_anyone_as_the_sender() -> None:
    """Flower's check of a node's key looks at one field of a push: hence ours looks at all."""
    key = ec.generate_private_key(ec.SECP384R1())
    state = SimpleNamespace(get_node_id_by_public_key=lambda _key: 5)
    app = SimpleNamespace(
        state=SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: state))
    )

    def check(node: int, sender: int) -> None:
        message = Message(metadata=Metadata(src_node_id=sender, dst_node_id=6))
        push = PushMessagesRequest(node=Node(node_id=node), messages_list=[message])
        authenticate_node(
            SimpleNamespace(  # type: ignore[arg-type]
                headers=signed_headers(key), state=SimpleNamespace(protobuf_request=push), app=app
            )
        )

    with pytest.raises(HTTPException):
        check(6, 6)
    check(5, 6)
    check(5, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_token_stands_in_the_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every account can read the arguments of a process: hence a launcher for tasks."""
    shown = tmp_path / "shown"
    fake = tmp_path / "flwr-serverapp"
    fake.write_text(f'#!/bin/sh\necho "$@" > {shown}.new; mv {shown}.new {shown}\n')
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    spec = ExecutionSpec(
        task_id=1,
        task_type=TaskType.SERVER_APP,
        runtime_api_address="127.0.0.1:1",
        token="secret-token",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=None,
        suppress_output=False,
    )
    SubprocessExecutor().launch(spec)
    deadline = time.monotonic() + 60
    while not shown.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "--token secret-token" in shown.read_text()
    gc.collect()  # Flower forgets the process that it started, about which Python complains here


class _NeverThere:
    """A Runtime API in which one reply was announced and none of its objects ever comes."""

    def __init__(self) -> None:
        self.asked, self.gone = threading.Event(), threading.Event()

    def PullMessages(self, _request: Protobuf) -> PullAppMessagesResponse:
        metadata = Metadata(run_id=1, message_id="a", reply_to_message_id="b")
        return PullAppMessagesResponse(
            messages_list=[Message(metadata=metadata)],
            message_object_trees=[ObjectTree(object_id="a")],
        )

    def PullObject(self, _request: Protobuf) -> Protobuf:
        self.asked.set()
        if self.gone.is_set():
            raise ConnectionError("the SuperLink has ended")
        raise ObjectUnavailableError("a")


def test_a_reply_that_never_comes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pull_messages`` blocks for as long as an upload may last: hence an inbox of our own."""
    runtime = _NeverThere()
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    grid.set_run(Run.create_empty(1))
    monkeypatch.setattr(grid, "_client", runtime)

    def wait() -> None:
        with contextlib.suppress(ConnectionError):
            grid.pull_messages(["b"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert runtime.asked.wait(60)
    waiting.join(3.0)
    still_waits = waiting.is_alive()
    runtime.gone.set()
    waiting.join(60)
    assert still_waits
    assert not waiting.is_alive()


def test_a_supernode_that_met_an_error_lives_on_and_is_deaf(tmp_path: Path) -> None:
    """After one answer 500 it never asks again, and does not end: hence our looks at it."""
    polls: list[float] = []

    async def link(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        path, status, answer = scope["path"].rsplit("/", 1)[-1], 200, b""
        if path == "register-node":
            answer = RegisterNodeFleetResponse(node_id=5).SerializeToString()
        elif path == "activate-node":
            answer = ActivateNodeResponse(node_id=5).SerializeToString()
        elif path == "pull-messages":
            assert PullMessagesRequest.FromString(await request.body()).node == Node(node_id=5)
            polls.append(time.monotonic())
            status = 500
        await Response(answer, status, media_type="application/protobuf")(scope, receive, send)

    port = free_port()
    config = uvicorn.Config(link, port=port, lifespan="off", ws="none", log_level="error")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    wait_for(port)
    argv = [
        *(program("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", str(free_port())),
    ]
    environment = child_environment() | {"FLWR_HOME": str(tmp_path / "flower")}
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen(
            argv, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 240
        while not polls:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        time.sleep(6.5)  # two polls of a SuperNode that works
        assert len(polls) == 1
        assert node.poll() is None
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
        server.should_exit = True


def test_both_framings_in_one_request_reach_the_application() -> None:
    """The HTTP server takes a length and chunks at once: hence the gateway refuses that."""
    seen: list[dict[str, str]] = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        seen.append(dict(request.headers))
        await Response(b"")(scope, receive, send)

    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(echo, port=port, http="h11", lifespan="off", ws="none", log_level="error")
    )
    threading.Thread(target=server.run, daemon=True).start()
    wait_for(port)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            while connection.recv(4096):
                pass
    server.should_exit = True
    assert {"content-length", "transfer-encoding"} <= seen[0].keys()


def test_the_python_that_runs_this_is_the_one_with_flower() -> None:
    """The programs above come from the environment of these tests."""
    assert Path(program("flower-superlink")).parent == Path(sys.executable).parent


def test_a_false_word_about_an_object_turns_others_away() -> None:
    """The first to name an object says what it consists of: hence stores without such words."""
    store = SqlObjectStore(":memory:")
    store.initialize()
    shared = ObjectTree(object_id="a" * 64)
    false = ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64)])
    store.preregister(1, ObjectTree(object_id="1" * 64, children=[false]))
    with pytest.raises(ValueError, match="different children"):
        store.preregister(1, ObjectTree(object_id="2" * 64, children=[shared]))
