"""Setting a node up, and the way to its server, without Flower."""

import contextlib
import http.server
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.client.home import ClientHome
from fedlatent.client.preflight import ServerAway, preflight
from fedlatent.client.service import ClientService, diagnose_supernode, init_client
from fedlatent.client.tls import identity_of
from fedlatent.server.authority import create_authority, issue_certificate, issue_client_certificate
from fedlatent.server.home import ServerHome
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.proxies import split_address

DATA = {"path": "beats.npz", "schema": {"name": "beats", "shape": [8]}}
FAILED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"
POLICY = {"max_epsilon": 4.0}


class _Answer(http.server.BaseHTTPRequestHandler):
    """Answers 403 with the date that the server holds for right."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response_only(403)
        self.send_header("Date", self.date_time_string(self.server.date))  # type: ignore[attr-defined]
        self.end_headers()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """A federation's authority, with a certificate for loopback."""
    home = ServerHome(tmp_path_factory.mktemp("authority") / "server")
    home.create()
    create_authority(home)
    issue_certificate(home, [])
    return home


@contextlib.contextmanager
def serving(
    authority: ServerHome, host: str, *, strangers: bool = True
) -> Iterator[http.server.HTTPServer]:
    """A TLS server with that certificate; its clock is the attribute ``date``.

    Without ``strangers``, clients must have a certificate of the authority.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.certificate_key)
    if not strangers:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca_certificate)
    made = http.server.ThreadingHTTPServer((host, 0), _Answer)
    made.handle_error = lambda *_: None  # type: ignore[method-assign]
    made.socket = context.wrap_socket(made.socket, server_side=True)
    made.date = None  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def server(authority: ServerHome) -> Iterator[http.server.HTTPServer]:
    """Such a server on an address that the certificate names."""
    with serving(authority, "127.0.0.1") as made:
        yield made


def test_a_good_way_is_silent(authority: ServerHome, server: http.server.HTTPServer) -> None:
    """Nothing is raised when the server answers with the right certificate and time."""
    preflight(f"127.0.0.1:{server.server_port}", authority.ca_certificate)


def set_up(authority: ServerHome, folder: Path) -> ClientHome:
    """A node's home."""
    home = ClientHome(folder / "node")
    certificate = authority.ca_certificate.read_bytes()
    init_client(
        home, site="ward-1", server="fed:8443", ca_certificate=certificate, data=DATA, policy=POLICY
    )
    return home


def test_a_node_shows_its_certificate(authority: ServerHome, tmp_path: Path) -> None:
    """Where the server asks for a certificate, the one in the node's home opens the way."""
    home = set_up(authority, tmp_path)
    assert identity_of(home) is None
    with serving(authority, "127.0.0.1", strangers=False) as server:
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ServiceError, match="run 'fedlatent client certificate FILE'"):
            preflight(address, home.ca_certificate, identity_of(home))
        key = home.node_public_key.read_text()
        home.client_certificate.write_bytes(issue_client_certificate(authority, "ward-1", key))
        preflight(address, home.ca_certificate, identity_of(home))
    assert home.node_key_pem.stat().st_mode & 0o777 == 0o600
    assert home.node_key_pem.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_the_certificate_of_another_key_is_named(authority: ServerHome, tmp_path: Path) -> None:
    """A client.crt that belongs to another site's key is refused in words."""
    home, other = set_up(authority, tmp_path / "a"), set_up(authority, tmp_path / "b")
    key = other.node_public_key.read_text()
    home.client_certificate.write_bytes(issue_client_certificate(authority, "ward-1", key))
    with pytest.raises(ServiceError, match="certificate of this node's key"):
        preflight("127.0.0.1:1", home.ca_certificate, identity_of(home))


def test_another_authority_is_named(server: http.server.HTTPServer, tmp_path: Path) -> None:
    """A wrong ca.crt is told apart from a wrong network."""
    other = ServerHome(tmp_path)
    other.create()
    create_authority(other)
    with pytest.raises(ServiceError, match=r"the wrong server or the wrong ca\.crt"):
        preflight(f"127.0.0.1:{server.server_port}", other.ca_certificate)


def test_a_name_the_certificate_lacks_is_said(authority: ServerHome) -> None:
    """An address that the certificate does not name is told apart from a wrong authority."""
    with (
        serving(authority, "127.0.0.2") as server,
        pytest.raises(ServiceError, match=r"certificate that names 127\.0\.0\.2"),
    ):
        preflight(f"127.0.0.2:{server.server_port}", authority.ca_certificate)


@pytest.mark.parametrize(("shift", "shown"), [(3600, "-3"), (-60, r"\+(59|60|61)")])
def test_a_wrong_clock_is_said(
    authority: ServerHome, server: http.server.HTTPServer, shift: int, shown: str
) -> None:
    """Clocks that differ by more than the signatures allow stop the node, with the difference."""
    server.date = time.time() + shift  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match=f"clock to agree with the server's, got {shown}"):
        preflight(f"127.0.0.1:{server.server_port}", authority.ca_certificate)


def test_a_silent_address_is_said(authority: ServerHome) -> None:
    """An address where nothing listens is named."""
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 to answer, got ConnectionRefused"):
        preflight("127.0.0.1:1", authority.ca_certificate)


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Takes CONNECT and leads to where the server's ``place`` says, or refuses with its status."""

    def do_CONNECT(self) -> None:
        """Connect both sides."""
        self.server.asked.append((self.path, self.headers.get("Proxy-Authorization")))  # type: ignore[attr-defined]
        self.send_response_only(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        if self.server.status != 200:  # type: ignore[attr-defined]
            return
        with socket.create_connection(("127.0.0.1", self.server.place)) as there:  # type: ignore[attr-defined]
            ends = {self.connection: there, there: self.connection}
            while True:
                readable, _, _ = select.select(list(ends), [], [], 10)
                for end in readable:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    """A forward proxy that the environment names."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    made.daemon_threads = True
    made.asked, made.status, made.place = [], 200, 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{made.server_port}")
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (200, None, ""),
        (403, ServiceError, "lead to the server at far.example:8443, got 403"),
        (502, ServerAway, "got 502 Bad Gateway; check whether the server runs"),
    ],
)
def test_the_way_leads_through_the_proxy(
    tmp_path: Path,
    proxy: http.server.HTTPServer,
    status: int,
    error: type[ServiceError] | None,
    words: str,
) -> None:
    """Where the environment names a forward proxy the node is checked through it, as it joins."""
    far = ServerHome(tmp_path / "far")
    far.create()
    create_authority(far)
    issue_certificate(far, ["far.example"])
    with serving(far, "127.0.0.1") as server:
        proxy.status, proxy.place = status, server.server_port  # type: ignore[attr-defined]
        if error is None:
            preflight("far.example:8443", far.ca_certificate)
        else:
            with pytest.raises(error, match=words):
                preflight("far.example:8443", far.ca_certificate)
    asked, password = proxy.asked[0]  # type: ignore[attr-defined]
    assert asked == "far.example:8443"
    assert password == "Basic bWU6c2VjcmV0"


def test_a_proxy_that_is_away_is_named(
    authority: ServerHome,
    server: http.server.HTTPServer,
    proxy: http.server.HTTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that NO_PROXY or loopback puts beside the proxy is reached without it."""
    preflight(f"127.0.0.1:{server.server_port}", authority.ca_certificate)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(ServerAway, match=r"the proxy 127\.0\.0\.1:1 to lead to .* got Conn"):
        preflight("127.0.0.2:1", authority.ca_certificate)
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    with pytest.raises(ServerAway, match=r"the server at 127\.0\.0\.2:1 to answer"):
        preflight("127.0.0.2:1", authority.ca_certificate)
    assert proxy.asked == []  # type: ignore[attr-defined]


def test_a_node_is_set_up_once(authority: ServerHome, tmp_path: Path) -> None:
    """A new home has its configuration, private keys and the authority; it is never overwritten."""
    home = ClientHome(tmp_path / "node")
    certificate = authority.ca_certificate.read_bytes()
    config = init_client(
        home, site="ward-1", server="fed:8443", ca_certificate=certificate, data=DATA, policy=POLICY
    )
    assert config.site == "ward-1"
    assert config.server is not None
    assert config.server.address == "fed:8443"
    assert home.ca_certificate.read_bytes() == certificate
    for path in (home.node_key, home.signing_key, home.superexec_secret, home.config):
        assert path.stat().st_mode & 0o777 == 0o600
    assert home.node_public_key.read_text().startswith("ecdsa-sha2-nistp384 ")
    with pytest.raises(ServiceError, match="Expected no node"):
        init_client(
            home, site="x", server="fed:1", ca_certificate=certificate, data=DATA, policy=POLICY
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"server": "fed"}, "host:port"),
        ({"ca_certificate": b"no"}, r"ca\.crt in PEM"),
        ({"site": "a b"}, "site"),
        ({"policy": {"max_epsilon": 1.0, "extra": 1}}, "extra"),
    ],
)
def test_bad_settings_leave_nothing(
    authority: ServerHome, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """A wrong value is refused before anything is written."""
    home = ClientHome(tmp_path / "node")
    settings = {
        "site": "ward-1",
        "server": "fed:8443",
        "ca_certificate": authority.ca_certificate.read_bytes(),
        "data": DATA,
        "policy": POLICY,
        **change,
    }
    with pytest.raises(ConfigError, match=message):
        init_client(home, **settings)  # type: ignore[arg-type]
    assert not home.root.exists()


def test_open_keys_stop_the_node(authority: ServerHome, tmp_path: Path) -> None:
    """A node whose key others can read does not start."""
    home = ClientHome(tmp_path / "node")
    init_client(
        home,
        site="ward-1",
        server="fed:8443",
        ca_certificate=authority.ca_certificate.read_bytes(),
        data=DATA,
        policy=POLICY,
    )
    home.node_key.chmod(0o644)
    with pytest.raises(ConfigError, match="0644"):
        ClientService(home)


@pytest.mark.parametrize(
    ("address", "parts"),
    [("a.org:1", ("a.org", 1)), ("10.0.0.1:65535", ("10.0.0.1", 65535)), ("[::1]:8", ("::1", 8))],
)
def test_addresses_come_apart(address: str, parts: tuple[str, int]) -> None:
    """Names, IPv4 and bracketed IPv6 addresses are taken with their port."""
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "a", ":1", "a:", "a:0", "a:70000", "a:x", "a:-1"])
def test_malformed_addresses_are_refused(address: str) -> None:
    """Anything that is not host:port is an error in words."""
    with pytest.raises(ConfigError, match="host:port"):
        split_address(address)


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("ERROR : Exit Code: 305\n[code: 2004] Failed to activate SuperNode.\n", "admitted"),
        (f"{FAILED}: self-signed certificate in certificate chain", "wrong ca.crt"),
        (f"{FAILED}: certificate has expired", "has ended by this machine's clock"),
        (f"{FAILED}: certificate is not yet valid", "begins later by this machine's clock"),
        (f"{FAILED}: Hostname mismatch, certificate is not valid for 'fed'.", "names fed:8443"),
        (f"{FAILED}: IP address mismatch, certificate is not valid for", "names fed:8443"),
        (
            "ssl.SSLError: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert",
            "client certificate",
        ),
        ("INFO\nERROR : Port in use\nINFO: bye", "Port in use"),
        ("", "nothing"),
    ],
)
def test_supernode_ends_are_explained(log: str, sentence: str) -> None:
    """What a SuperNode printed becomes one sentence with a remedy where one is known."""
    assert sentence in diagnose_supernode(log, ClientHome(Path("node")), "fed:8443")
