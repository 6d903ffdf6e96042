"""The Flower ClientApp: a thin shim that hands each message to the resident node.

Flower starts a process per message, so this module imports neither PyTorch nor Opacus. The node
configuration key ``socket`` names the resident's Unix socket. Without it, as in Flower's own
simulation, a node chosen by ``partition-id`` answers inside this process: of a folder of client
homes, or in a plain ``flwr run`` a synthetic patient.

No exception leaves: Flower would send its text to the server.
"""

import logging
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlatent.client.link import ask
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.errors import ConfigError, ProtocolError, ServiceError
from fedlatent.shared.records import from_records, reply_records
from fedlatent.shared.wire import ReplyHeader, RequestHeader, deliver, pack

SOCKET_KEY = "socket"
PARTITION_KEY = "partition-id"
SITE_KEY = "site"  # named in refusals that the node itself could not write

#: Added to a request's deadline for the way there and back.
_MARGIN_S = 5.0
_LOG = logging.getLogger(__name__)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a request of any kind with a reply or a refusal; never raises.

    The node's reply passes unopened.
    """
    header: RequestHeader | None = None
    try:
        header, arrays = from_records(message.content)
        content = reply_records(_answer(header, arrays, context))
    except ProtocolError as error:
        content = _refusal(header, context, error.code, str(error)[:500])
    except ServiceError as error:
        _LOG.error("%s", error)
        text = "Expected this site's node to answer in time, got no answer; ask its operator."
        content = _refusal(header, context, "unavailable", text)
    except Exception:
        _LOG.exception("request failed inside the app")
        text = "The node could not do this; its operator finds the reason in the node's log."
        content = _refusal(header, context, "internal", text)
    return Message(content, reply_to=message)


def _answer(header: RequestHeader, arrays: Arrays, context: Context) -> bytes:
    """The delivered reply of the resident, or of a simulated node where there is none."""
    socket = context.node_config.get(SOCKET_KEY)
    if isinstance(socket, str):
        return ask(Path(socket), pack(header, arrays), header.deadline_s + _MARGIN_S)
    partition = context.node_config.get(PARTITION_KEY)
    if not isinstance(partition, int):
        raise ConfigError(
            f"Expected a node configuration with {SOCKET_KEY!r} or {PARTITION_KEY!r}, got "
            "neither; start the SuperNode with --node-config."
        )
    from fedlatent.client.local import partition_node  # imports PyTorch

    node = partition_node(header.run_id, partition, context.node_id)
    return deliver(node.handle(header, arrays).payload)


def _refusal(request: RequestHeader | None, context: Context, code: str, text: str) -> RecordDict:
    site = context.node_config.get(SITE_KEY)
    name = site[:64] if isinstance(site, str) and site else "unknown"
    header = ReplyHeader.to(request, name, status="refused", code=code, text=text)
    return reply_records(deliver(pack(header, {})))
