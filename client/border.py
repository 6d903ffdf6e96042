"""The border of a deployed node: what it takes for a request of its server, and how it answers.

Nothing on the way is trusted: a request counts only with the server's signature, for this site, in
time and unchanged, and an answer leaves with the signature of the node's own key. Stored answers
are not signed; each sending is, so that a request that comes again gets the same bytes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from fedlatent.client.door import Outgoing
from fedlatent.client.home import ClientHome
from fedlatent.client.policy import NodeConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.signing import ReplySigner, check_request, request_name
from fedlatent.shared.wire import Delivery, RequestHeader


@dataclass(frozen=True, kw_only=True)
class Border:
    """Checks requests and signs answers.

    Attributes:
        authority: certificate of the federation's authority, as this site pinned it.
        site: this site's name.
        signer: holds the key that the site was admitted with.
        clock: seconds since 1970.
    """

    authority: x509.Certificate
    site: str
    signer: ReplySigner
    clock: Callable[[], float] = time.time

    @classmethod
    def of(cls, home: ClientHome, config: NodeConfig) -> Self | None:
        """The border of a home whose node file names a server; None for a simulated node.

        Raises:
            ConfigError: the authority's certificate or the node's key is not usable.
        """
        if config.server is None:
            return None
        try:
            authority = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
        except (OSError, ValueError):
            raise ConfigError(
                f"Expected the federation's certificate in {home.ca_certificate}, got none; "
                "copy the server's tls/ca.crt there."
            ) from None
        return cls(authority=authority, site=config.site, signer=ReplySigner.load(home.node_key))

    def check(self, header: RequestHeader, digest: bytes) -> None:
        """Pass a request of the server to this site; ``digest`` is that of its arrays.

        Raises:
            SignatureError: naming what does not hold.
        """
        check_request(header, digest, self.authority, self.site, self.clock())

    def sign(self, outgoing: Outgoing, request: RequestHeader, digest: bytes) -> Delivery:
        """What the answer to exactly that request is sent with; ``digest`` is as for ``check``."""
        return self.signer.sign(outgoing.payload, request_name(request, digest))
