"""How much one site's key may ask for."""

import asyncio
import time
from dataclasses import dataclass, field

from fedlatent.server.gateway.refusal import Refused
from fedlatent.server.settings import GatewayLimits


@dataclass
class Bucket:
    """A token bucket: ``burst`` requests at once, ``per_second`` of them in the long run."""

    per_second: float
    burst: float
    _tokens: float = field(init=False)
    _updated: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        """Begin full."""
        self._tokens = self.burst

    def take(self) -> bool:
        """Take one token; ``False`` when there is none."""
        now = time.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._updated) * self.per_second)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass
class Use:
    """What one key uses now.

    Attributes:
        requests: Of any kind.
        messages: Replies announced.
        bodies: Places for requests that are held in memory; others wait.
    """

    requests: Bucket
    messages: Bucket
    bodies: asyncio.Semaphore


class Rates:
    """The use of each key."""

    def __init__(self, limits: GatewayLimits) -> None:
        """Start with no use."""
        self._limits = limits
        self._uses: dict[str, Use] = {}

    def of(self, key: str) -> Use:
        """The use of the key with this fingerprint."""
        if key not in self._uses:
            limits = self._limits
            self._uses[key] = Use(
                Bucket(limits.requests_per_second, limits.burst),
                Bucket(limits.messages_per_minute / 60, limits.messages_per_minute),
                asyncio.Semaphore(limits.bodies_per_site),
            )
        return self._uses[key]

    def count(self, key: str, name: str) -> Use:
        """Count a request to the endpoint ``name``.

        Raises:
            Refused: It is one too many; Flower's SuperNode waits and asks again.
        """
        use, limits = self.of(key), self._limits
        if not use.requests.take():
            kind = "more than %g requests a second"
            raise Refused(503, kind, limits.requests_per_second, close=True)
        if name == "push-messages" and not use.messages.take():
            kind = "more than %d messages a minute"
            raise Refused(503, kind, limits.messages_per_minute, close=True)
        return use
