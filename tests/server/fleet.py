"""A raw fleet client: an admitted node that says whatever a test wants, on Flower's own client."""

import socket
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor


@dataclass(kw_only=True)
class Reply:
    """A reply about to be announced; change what it says before.

    Attributes:
        request: The protobuf that announces it: node, message, tree, run time.
        objects: Its objects, id to content.
        session: The server's name for the upload, once announced.
        awaited: The ids that the server asked for.
    """

    request: fleet_pb2.PushMessagesRequest
    objects: dict[str, bytes]
    session: str = ""
    awaited: list[str] = field(default_factory=list)


class FleetNode:
    """One node key at a gateway, or at any server that speaks the fleet API."""

    def __init__(self, address: str, ca: Path, key: Path, certificate: Path | None = None) -> None:
        """Connect as the node whose private key (OpenSSH) is in ``key``, when first asked."""
        private = serialization.load_ssh_private_key(key.read_bytes(), password=None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self.private = private
        self.public = public_key_to_bytes(private.public_key())
        self.address = address
        self.node_id = 0
        self.tls = ssl.create_default_context(cafile=str(ca))
        if certificate is not None:
            with tempfile.NamedTemporaryFile() as file:  # TLS takes no key in OpenSSH form
                file.write(_pem(private))
                file.flush()
                self.tls.load_cert_chain(certificate, file.name)
        self._signer = NodeAuthHttpInterceptor(private, private.public_key())
        self.client = FleetHttpClient(
            f"https://{address}", interceptors=[self._signer], verify=self.tls, timeout=30.0
        )

    def __enter__(self) -> Self:
        """Nothing happens yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections; the server is not told."""
        self.client.close()

    @property
    def node(self) -> node_pb2.Node:
        """What this node calls itself; set ``node_id`` to lie."""
        return node_pb2.Node(node_id=self.node_id)

    def activate(self) -> int:
        """Join; keeps and returns the node id that the server gave."""
        request = fleet_pb2.ActivateNodeRequest(public_key=self.public, heartbeat_interval=30)
        self.node_id = self.client.ActivateNode(request).node_id
        return self.node_id

    def heartbeat(self) -> bool:
        """Say that the node lives."""
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30)
        return self.client.SendNodeHeartbeat(request).success

    def poll(self) -> fleet_pb2.PullMessagesResponse:
        """Ask once for a message, and take none of its objects."""
        return self.client.PullMessages(fleet_pb2.PullMessagesRequest(node=self.node))

    def pull(self, timeout_s: float = 30.0) -> Message:
        """Wait for a message and take it whole, as Flower's SuperNode does."""
        deadline = time.monotonic() + timeout_s
        while not (answer := self.poll()).messages_list:
            assert time.monotonic() < deadline, "no message came"
            time.sleep(0.1)
        head, tree = answer.messages_list[0], answer.message_object_trees[0]
        run = head.metadata.run_id
        ids = list(_ids(tree))
        contents = {one: self.pull_object(run, one) for one in ids}
        self.confirm(run, tree.object_id)
        if not contents[tree.object_id]:  # a stub has heads alone
            return message_from_proto(head)
        message = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = head.metadata.message_id
        return message

    def pull_object(self, run: int, object_id: str) -> bytes:
        """One object of a message; waits while the server itself still lacks it."""
        request = message_pb2.PullObjectRequest(node=self.node, run_id=run, object_id=object_id)
        while (answer := self.client.PullObject(request)).object_found:
            if answer.object_available:
                return answer.object_content
            time.sleep(0.1)
        raise LookupError(f"the server knows no object {object_id}")

    def confirm(self, run: int, message: str) -> None:
        """Say that a message came whole."""
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=self.node, run_id=run, message_object_id=message
        )
        self.client.ConfirmMessageReceived(request)

    def get_run(self, run: int) -> run_pb2.GetRunResponse:
        """What the server tells of a run."""
        return self.client.GetRun(run_pb2.GetRunRequest(node=self.node, run_id=run))

    def get_fab(self, run: int, digest: str) -> fab_pb2.GetFabResponse:
        """The app of a run."""
        request = fab_pb2.GetFabRequest(node=self.node, run_id=run, hash_str=digest)
        return self.client.GetFab(request)

    def reply(self, to: Message, content: RecordDict, **metadata: object) -> Reply:
        """A reply; ``metadata`` replaces fields such as ``src_node_id`` before ids are computed."""
        message = Message(content, reply_to=to)
        for name, value in metadata.items():
            assert f"_{name}" in message.metadata.__dict__, name
            message.metadata.__dict__[f"_{name}"] = value
        message.metadata.__dict__["_message_id"] = message.object_id
        head = message_to_proto(message)
        head.content.Clear()
        request = fleet_pb2.PushMessagesRequest(
            node=self.node,
            messages_list=[head],
            message_object_trees=[get_object_tree(message)],
            clientapp_runtime_list=[0.1],
        )
        objects = {one: item.deflate() for one, item in get_all_nested_objects(message).items()}
        return Reply(request=request, objects=objects)

    def announce(self, reply: Reply) -> Reply:
        """Say that a reply comes; nothing of it is sent."""
        answer = self.client.PushMessages(reply.request)
        reply.session, reply.awaited = answer.session_id, list(answer.objects_to_push)
        return reply

    def push_object(self, run: int, session: str, object_id: str, content: bytes) -> bool:
        """Send one object."""
        return self.client.PushObject(self.object_request(run, session, object_id, content)).stored

    def object_request(
        self, run: int, session: str, object_id: str, content: bytes
    ) -> message_pb2.PushObjectRequest:
        """The request that sends one object."""
        return message_pb2.PushObjectRequest(
            node=self.node,
            run_id=run,
            session_id=session,
            object_id=object_id,
            object_content=content,
        )

    def send(self, reply: Reply) -> None:
        """Announce a reply and send all that the server asks for."""
        self.announce(reply)
        run = reply.request.messages_list[0].metadata.run_id
        for one in reply.awaited:
            assert self.push_object(run, reply.session, one, reply.objects[one])

    def head(self, endpoint: str, length: int | None, **more: str) -> bytes:
        """The head of a signed request, for tests that write to the socket themselves.

        Args:
            endpoint: Last part of the path.
            length: What it states as Content-Length; None states nothing.
            more: Further fields, or others in place of its own, ``_`` for ``-``.
        """
        request = httpx.Request("POST", f"https://{self.address}/v1/fleet/{endpoint}")
        context = ProtobufRequestContext(rpc_method="", message=self.node, request=request)
        self._signer.intercept(context, lambda _: httpx.Response(200))
        fields = {
            **{key: value for key, value in request.headers.items() if key != "content-length"},
            "content-type": "application/protobuf",
            **({} if length is None else {"content-length": str(length)}),
            **{key.replace("_", "-"): value for key, value in more.items()},
        }
        lines = [f"POST /v1/fleet/{endpoint} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection of its own."""
        host, port = self.address.split(":")
        plain = socket.create_connection((host, int(port)), timeout=30)
        return self.tls.wrap_socket(plain, server_hostname=host)

    def drip(self, endpoint: str, body: bytes, *, piece: int, pause_s: float) -> bytes:
        """Send a request in small pieces; returns what came back until the server closed."""
        with self.connect() as line:
            try:
                line.sendall(self.head(endpoint, len(body), connection="close"))
                for start in range(0, len(body), piece):
                    line.sendall(body[start : start + piece])
                    time.sleep(pause_s)
            except OSError:
                pass  # cut off; an answer may have come before
            return read_all(line)


def read_all(line: socket.socket) -> bytes:
    """Everything until the other side ends, in whatever way."""
    answer = b""
    try:
        while part := line.recv(65536):
            answer += part
    except OSError:
        pass
    return answer


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _ids(tree: message_pb2.ObjectTree) -> list[str]:
    return [tree.object_id, *(one for child in tree.children for one in _ids(child))]
