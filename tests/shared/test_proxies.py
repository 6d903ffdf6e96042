"""The proxy that the environment names, and what our processes get of it."""

import httpx
import pytest

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.proxies import proxy_environment, proxy_for, without_proxies
from fedlatent.shared.supervisor import child_environment


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the tests themselves names none."""
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


def test_our_own_processes_know_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the spelling, what meets on this machine goes through none."""
    for name in ("HTTP_PROXY", "https_proxy", "All_Proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    left = {name for name in child_environment() if "proxy" in name.lower()}
    assert left == set()
    assert without_proxies({"http_proxy": "x", "HOME": "/"}) == {"HOME": "/"}


def test_without_a_proxy_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that go past a proxy mean nothing where there is none."""
    monkeypatch.setenv("NO_PROXY", "fed")
    assert proxy_environment("fed") == {}
    assert proxy_for("fed") is None


def test_what_is_near_goes_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback and what NO_PROXY names are reached directly, whatever the proxy is."""
    monkeypatch.setenv("ALL_PROXY", "socks9://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "near.example, 10.0.0.0/8, fe80::/10, [::2]")
    near = ("localhost", "127.0.0.1", "::1", "::2", "near.example", "x.near.example")
    assert [proxy_for(host) for host in near] == [None] * len(near)
    assert [proxy_environment(host) for host in near] == [{}] * len(near)
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_for("far.example") is None


def test_flowers_client_reads_what_a_link_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the environment, at which it might fail, stays away."""
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1")
    monkeypatch.setenv("NO_PROXY", "near.example,::1/128")
    assert proxy_environment("far.example") == {"HTTPS_PROXY": "proxy:3128"}
    for name in ("ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name)
    httpx.Client().close()


@pytest.mark.parametrize(
    ("text", "place", "password"),
    [
        ("proxy:3128", ("http", "proxy", 3128), None),
        ("http://proxy", ("http", "proxy", 80), None),
        ("http://me:a%20b@10.0.0.1:8080", ("http", "10.0.0.1", 8080), "Basic bWU6YSBi"),
        ("https://proxy:443", ("https", "proxy", 443), None),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_proxies_are_read(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    place: tuple[str, str, int],
    password: str | None,
) -> None:
    """Place and password, with and without a scheme."""
    monkeypatch.setenv(name, text)
    found = proxy_for("fed")
    assert found is not None
    assert (found.scheme, found.host, found.port) == place
    assert found.headers.get("Proxy-Authorization") == password


@pytest.mark.parametrize("text", ["socks4://p:1", "ftp://p", "http://", "http://p:x", "//"])
def test_other_proxies_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What Flower's client would stumble over is an error in words."""
    monkeypatch.setenv("HTTPS_PROXY", text)
    with pytest.raises(ConfigError, match="Expected a proxy of the form http://host:port"):
        proxy_for("fed")
