"""Why the gateway does not pass a request on."""

from starlette.responses import JSONResponse, Response

ACTIVATION_FAILED = 2004
"""Flower's code for a node whose key the server does not know; its SuperNode prints it."""


class Refused(Exception):
    """A request ends here.

    Flower's SuperNode asks again after 503 and 504, drops one reply after 403, and ends (to be
    started again) after 401.

    Attributes:
        status: HTTP status of the answer.
        reason: What is wrong, for the log and for the sender.
        close: Whether the connection ends too; it must where a body was not read.
    """

    def __init__(self, status: int, reason: str, *, close: bool = False) -> None:
        """Refuse with ``status`` because of ``reason``."""
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.close = close

    def response(self) -> Response:
        """The answer to the sender, in the form of Flower's own errors."""
        return JSONResponse({"detail": self.reason}, self.status, self._headers())

    def _headers(self) -> dict[str, str]:
        headers = {"connection": "close"} if self.close else {}
        return headers | ({"retry-after": "1"} if self.status == 503 else {})


class NotAdmitted(Refused):
    """No site has this key; to ``activate-node`` the answer is the SuperLink's own."""

    def __init__(self, fingerprint: str, *, activating: bool) -> None:
        """Refuse the key called ``fingerprint``."""
        self.activating = activating
        status = 412 if activating else 401
        super().__init__(
            status,
            f"the node with key {fingerprint} may not join (status {status}): it is not admitted",
            close=True,
        )

    def response(self) -> Response:
        """The SuperLink's answer, which Flower's SuperNode shows with its code."""
        value: dict[str, object] = {"detail": "Invalid SuperNode authentication"}
        if self.activating:
            value = {"code": ACTIVATION_FAILED, "detail": "Failed to activate SuperNode."}
        return JSONResponse(value, self.status, self._headers())
