"""The server's side of the signatures: each node gets a request of its own, and answers that one.

A ``Seal`` lasts as long as a run, an ``Envelope`` for one attempt at one phase. Runs in one
process have none.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import time
from typing import Self

from fedlatent.server.control import Control
from fedlatent.server.home import ServerHome
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.keys import node_public_key
from fedlatent.shared.signing import RequestSigner, check_reply, request_name
from fedlatent.shared.wire import Delivery, RequestHeader


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Signs requests to sites and knows the keys that they answer with.

    Attributes:
        signer: of requests.
        keys: reads the public key, in OpenSSH form, of each admitted site by name.
        clock: seconds since 1970.
        renewed: reads the signer anew, since its certificate may be renewed in a long run; by
            default it stays.
    """

    signer: RequestSigner
    keys: Callable[[], Mapping[str, str]]
    clock: Callable[[], float] = time
    renewed: Callable[[], RequestSigner] | None = None

    @classmethod
    def of(cls, home: ServerHome) -> Self | None:
        """The seal of a server; None for a home without an authority, as in simulations.

        Raises:
            ServiceError: the authority has not certified a key for requests yet.
            ConfigError: that key is not usable.
        """
        if not home.ca_certificate.exists():
            return None
        if not home.requests_key.exists():
            raise ServiceError(
                f"Expected a key for requests in {home.requests_key}, got none; start the server "
                "again, which makes it."
            )

        def load() -> RequestSigner:
            return RequestSigner.load(home.requests_key, home.requests_certificate)

        return cls(
            signer=load(),
            renewed=load,
            keys=lambda: {site.name: site.public_key for site in Control(home).sites()},
        )

    def envelope(self, names: Mapping[int, str], lasts_s: float) -> "Envelope":
        """What one attempt at a phase is sent in.

        Args:
            names: site name by node id, of the nodes that are asked.
            lasts_s: seconds for which sites take the requests.
        """
        seal = self
        if self.renewed is not None:
            with contextlib.suppress(ConfigError):  # half of a new pair: the old one still holds
                seal = replace(self, signer=self.renewed())
        return Envelope(seal=seal, names=names, expires=self.clock() + lasts_s)


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Signs the requests of one attempt at a phase, and checks that answers are to these.

    Attributes:
        seal: keys of both sides.
        names: site name by node id, of the nodes that are asked.
        expires: seconds since 1970 after which no site takes the requests.
    """

    seal: Seal
    names: Mapping[int, str]
    expires: float
    _requests: dict[int, str] = field(default_factory=dict, init=False)

    def sign(self, header: RequestHeader, digest: bytes, node: int) -> RequestHeader:
        """The header for one node; ``digest`` is that of the request's arrays."""
        signed = self.seal.signer.sign(header, digest, self.names[node], self.expires)
        self._requests[node] = request_name(signed, digest)
        return signed

    def check(self, node: int, delivery: Delivery, sha256: str) -> str | None:
        """Why this is not the answer of that node to its request; None when it is.

        Args:
            node: its id.
            delivery: that came with the packed reply.
            sha256: of the packed reply.
        """
        name = self.names[node]
        try:
            key = node_public_key(self.seal.keys()[name], f"the admission of site {name!r}")
        except KeyError:
            return f"Expected site {name!r} to be admitted still, got no key of that name."
        except ConfigError as error:
            return str(error)
        return check_reply(delivery, sha256, key, self._requests.get(node, ""))
