"""The Flower ClientApp: a thin shim that hands each message to the resident node.

Flower starts a process per message, so this module imports neither PyTorch nor Opacus. The node
configuration key ``socket`` names the resident's Unix socket. Without it, as in Flower's own
simulation, a node chosen by ``partition-id`` answers inside this process: of a folder of client
homes, or in a plain ``flwr run`` a synthetic patient.

No exception leaves: Flower would send its text to the server.
"""

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlatent.client.link import ask
from fedlatent.shared.errors import ConfigError, ProtocolError, ServiceError
from fedlatent.shared.records import from_records, to_records
from fedlatent.shared.wire import (
    PROTOCOL,
    Arrays,
    ReplyHeader,
    RequestHeader,
    pack,
    unpack,
)

SOCKET_KEY = "socket"
PARTITION_KEY = "partition-id"
SITE_KEY = "site"  # named in refusals that the node itself could not write

#: Added to a request's deadline for the way there and back.
_MARGIN_S = 5.0
_LOG = logging.getLogger(__name__)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a request of any kind with a reply or a refusal; never raises."""
    header: RequestHeader | None = None
    try:
        header, arrays = from_records(RequestHeader, message.content)
        reply, released = _answer(header, arrays, context)
    except ProtocolError as error:
        reply, released = _refusal(header, context, error.code, str(error)[:500]), {}
    except ServiceError as error:
        _LOG.error("%s", error)
        text = "Expected this site's node to answer in time, got no answer; ask its operator."
        reply, released = _refusal(header, context, "unavailable", text), {}
    except Exception:
        _LOG.exception("request failed inside the app")
        text = "The node could not do this; its operator finds the reason in the node's log."
        reply, released = _refusal(header, context, "internal", text), {}
    return Message(to_records(reply, released), reply_to=message)


def _answer(header: RequestHeader, arrays: Arrays, context: Context) -> tuple[ReplyHeader, Arrays]:
    """Ask the resident, or a simulated node where there is none."""
    socket = context.node_config.get(SOCKET_KEY)
    if isinstance(socket, str):
        data = ask(Path(socket), pack(header, arrays), header.deadline_s + _MARGIN_S)
        return unpack(ReplyHeader, data)
    partition = context.node_config.get(PARTITION_KEY)
    if not isinstance(partition, int):
        raise ConfigError(
            f"Expected a node configuration with {SOCKET_KEY!r} or {PARTITION_KEY!r}, got "
            "neither; start the SuperNode with --node-config."
        )
    from fedlatent.client.local import partition_node  # imports PyTorch

    node = partition_node(header.run_id, partition, context.node_id)
    outgoing = node.handle(header, arrays)
    return unpack(ReplyHeader, outgoing.payload)


def _refusal(request: RequestHeader | None, context: Context, code: str, text: str) -> ReplyHeader:
    site = context.node_config.get(SITE_KEY)
    return ReplyHeader(
        protocol=PROTOCOL,
        run_id=request.run_id if request else "unknown",
        round=request.round if request else 1,
        kind=request.kind if request else "train",
        site=site[:64] if isinstance(site, str) and site else "unknown",
        status="refused",
        code=code,
        text=text,
    )
