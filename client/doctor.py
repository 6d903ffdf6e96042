"""What is looked at on a node's side before a run is blamed."""

from collections.abc import Iterator

from fedlatent.client.home import ClientHome
from fedlatent.client.local import open_ledger, read_accepted, read_dataset
from fedlatent.client.policy import NodeConfig
from fedlatent.client.preflight import preflight
from fedlatent.client.tls import identity_of
from fedlatent.shared.doctor import Finding, machine, proxies, tried
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.proxies import proxy_for, split_address
from fedlatent.shared.supervisor import running_pid


def examine(home: ClientHome) -> Iterator[Finding]:
    """Look at one node, running or not; the server is asked for no more than its time."""
    keys = [home.node_key, home.signing_key, home.superexec_secret, home.config]
    yield from machine(home.root, keys)
    try:
        config = NodeConfig.load(home.config)
    except ConfigError as error:
        yield Finding(name="settings", health="ill", text=str(error))
        return
    yield from _kept(home, config)
    if config.server is not None:
        address = config.server.address
        yield tried("proxies", lambda: _proxy(address))
        yield tried("server", lambda: _server(home, address))
    running = running_pid(home.services)
    told = "the node does not run" if running is None else f"the node runs as process {running}"
    yield Finding(name="node", health="well" if running else "warning", text=told)


def _kept(home: ClientHome, config: NodeConfig) -> Iterator[Finding]:
    """The records, read once, and the ledger, whose delta follows from how many there are."""
    counts: list[int] = []

    def records() -> str:
        counts.append(len(read_accepted(home, config).normals()))
        limit = config.policy.effective_delta(counts[0])
        return f"{counts[0]} normal records; runs may have a delta of at most {limit:.3g}"

    def ledger() -> str:
        if not home.ledger.exists():
            return "nothing was charged yet"
        count = counts[0] if counts else len(read_dataset(home, config.data).normals())
        return _ledger(home, config, count)

    yield tried("records", records)
    yield tried("ledger", ledger)


def _ledger(home: ClientHome, config: NodeConfig, records: int) -> str:
    book, found = open_ledger(home, config, records)
    return f"{found.events} events, whole; epsilon {book.epsilon():.4f} spent"


def _proxy(address: str) -> str:
    proxy = proxy_for(split_address(address)[0])
    way = "straight" if proxy is None else f"through the proxy {proxy.host}:{proxy.port}"
    return f"{proxies()}; the way to {address} goes {way}"


def _server(home: ClientHome, address: str) -> str:
    preflight(address, home.ca_certificate, identity_of(home))
    return f"the server at {address} answers, with the right certificate and the same time"
