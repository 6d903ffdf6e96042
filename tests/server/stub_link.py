"""A tiny SuperLink for tests of the gateway: the fleet API on a Unix socket, without runs."""

import hashlib
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

RUN = 77


@dataclass
class StubLink:
    """Answers as the SuperLink would to what the gateway lets through, and remembers it.

    Attributes:
        socket: Where it listens.
        nodes: Public key (PEM) to node id.
        seen: Requests that came: endpoint, body, headers.
        waiting: Message ids that a node is given when it asks next.
        object_size: Bytes of each object that it gives.
        failing: Status of its answers, while not 200.
    """

    socket: Path
    nodes: dict[bytes, int] = field(default_factory=dict)
    seen: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    waiting: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    object_size: int = 0
    failing: int = 200
    received: Counter[str] = field(default_factory=Counter)

    def start(self) -> "StubLink":
        """Listen, in a thread."""
        config = uvicorn.Config(
            self._answer,
            uds=str(self.socket),
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_level="error",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Be down."""
        self._server.should_exit = True
        self._thread.join(10)

    def give(self, node: int) -> str:
        """Have a message ready for ``node``; returns its id."""
        message = hashlib.sha256(f"{node} {time.time_ns()}".encode()).hexdigest()
        self.waiting[node].append(message)
        return message

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        name = scope["raw_path"].decode().removeprefix("/v1/fleet/")
        self.seen.append((name, body, dict(request.headers)))
        if self.failing != 200:
            await Response(b"no", self.failing)(scope, receive, send)
            return
        response = getattr(self, "_" + name.replace("-", "_"))(body)
        await Response(response.SerializeToString(), 200, {"x-own": "1"})(scope, receive, send)

    def _activate_node(self, body: bytes) -> fleet_pb2.ActivateNodeResponse:
        key = fleet_pb2.ActivateNodeRequest.FromString(body).public_key
        return fleet_pb2.ActivateNodeResponse(node_id=self.nodes[key])

    def _deactivate_node(self, _body: bytes) -> fleet_pb2.DeactivateNodeResponse:
        return fleet_pb2.DeactivateNodeResponse()

    def _send_node_heartbeat(self, _body: bytes) -> heartbeat_pb2.SendNodeHeartbeatResponse:
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def _pull_messages(self, body: bytes) -> fleet_pb2.PullMessagesResponse:
        node = fleet_pb2.PullMessagesRequest.FromString(body).node.node_id
        if not self.waiting[node]:
            return fleet_pb2.PullMessagesResponse()
        message = self.waiting[node].pop(0)
        metadata = message_pb2.Metadata(
            run_id=RUN,
            message_id=message,
            src_node_id=1,
            dst_node_id=node,
            ttl=600,
            message_type="train",
            created_at=time.time(),
        )
        child = message_pb2.ObjectTree(object_id=hashlib.sha256(message.encode()).hexdigest())
        tree = message_pb2.ObjectTree(object_id=message, children=[child])
        head = message_pb2.Message(metadata=metadata)
        head.content.SetInParent()
        return fleet_pb2.PullMessagesResponse(messages_list=[head], message_object_trees=[tree])

    def _push_messages(self, body: bytes) -> fleet_pb2.PushMessagesResponse:
        request = fleet_pb2.PushMessagesRequest.FromString(body)
        ids = [request.message_object_trees[0].object_id]
        waiting = list(request.message_object_trees[0].children)
        while waiting:
            one = waiting.pop()
            ids.append(one.object_id)
            waiting.extend(one.children)
        session = hashlib.sha256(body).hexdigest()[:16]
        return fleet_pb2.PushMessagesResponse(objects_to_push=set(ids), session_id=session)

    def _push_object(self, body: bytes) -> message_pb2.PushObjectResponse:
        request = message_pb2.PushObjectRequest.FromString(body)
        self.received[request.session_id] += len(request.object_content)
        return message_pb2.PushObjectResponse(stored=True)

    def _pull_object(self, _body: bytes) -> message_pb2.PullObjectResponse:
        return message_pb2.PullObjectResponse(
            object_found=True, object_available=True, object_content=bytes(self.object_size)
        )

    def _confirm_message_received(self, _body: bytes) -> message_pb2.ConfirmMessageReceivedResponse:
        return message_pb2.ConfirmMessageReceivedResponse()

    def _get_run(self, body: bytes) -> run_pb2.GetRunResponse:
        run = run_pb2.GetRunRequest.FromString(body).run_id
        return run_pb2.GetRunResponse(run=run_pb2.Run(run_id=run))

    def _get_fab(self, _body: bytes) -> fab_pb2.GetFabResponse:
        return fab_pb2.GetFabResponse(fab=fab_pb2.Fab(hash_str="h", content=b"c"))
