"""Why the gateway does not pass a request on."""

from starlette.responses import JSONResponse, Response

ACTIVATION_FAILED = 2004
"""Flower's code for a node whose key the server does not know; its SuperNode prints it."""

_NOT_AUTHENTICATED = "Invalid SuperNode authentication"


class Refused(Exception):
    """A request ends here.

    Flower's SuperNode asks again after 503 and 504, drops one reply after 403, and ends (to be
    started again) after 401.

    Attributes:
        status: HTTP status of the answer.
        kind: What is wrong, with ``%s`` for what the sender chose: one kind, one line in the log.
        values: What stands in its place.
        close: Whether the connection ends too; it must where a body was not read.
    """

    def __init__(self, status: int, kind: str, *values: object, close: bool = False) -> None:
        """Refuse with ``status`` because of ``kind`` with these ``values``."""
        super().__init__(kind % values)
        self.status = status
        self.kind = kind
        self.values = values
        self.close = close

    def response(self) -> Response:
        """The answer to the sender, in the form of Flower's own errors."""
        detail = _NOT_AUTHENTICATED if self.status == 401 else str(self)
        return JSONResponse({"detail": detail}, self.status, self._headers())

    def _headers(self) -> dict[str, str]:
        headers = {"connection": "close"} if self.close else {}
        return headers | ({"retry-after": "1"} if self.status == 503 else {})


class NotAdmitted(Refused):
    """No site has this key; to ``activate-node`` the answer is the SuperLink's own."""

    def __init__(self, fingerprint: str, *, activating: bool) -> None:
        """Refuse the key called ``fingerprint``."""
        self.activating = activating
        status = 412 if activating else 401
        kind = f"the node with key %s may not join (status {status}): it is not admitted"
        super().__init__(status, kind, fingerprint, close=True)

    def response(self) -> Response:
        """The SuperLink's answer, which Flower's SuperNode shows with its code."""
        if not self.activating:
            return super().response()
        value = {"code": ACTIVATION_FAILED, "detail": "Failed to activate SuperNode."}
        return JSONResponse(value, self.status, self._headers())
