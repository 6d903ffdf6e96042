"""An invitation is one file: 'server invite' makes it, and 'client join' makes a node of it."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.policy import NodeConfig
from fedlatent.server.control import Site
from fedlatent.server.home import ServerHome
from fedlatent.server.invite import worries
from fedlatent.server.service import init_server
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.invitation import Invitation
from fedlatent.shared.keys import site_of_key
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.wire import PROTOCOL
from tests.cli.conftest import Run
from tests.simulations.support import tiny_federation, tiny_run

FEDERATION = tiny_federation()
NUMBERS: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-4, "sample_rate": 0.5, "rng": "secure"}


@pytest.fixture
def server(tmp_path: Path) -> ServerHome:
    """A server that was made and does not run, and a run file beside it."""
    home = ServerHome(tmp_path / "server")
    init_server(home, host="127.0.0.1", port=8443, names=["fl.example"])
    run = tiny_run(FEDERATION, privacy=NUMBERS)
    (tmp_path / "run.toml").write_text(run_file(run.model_dump(mode="json")))
    np.savez(tmp_path / "beats.npz", X=FEDERATION.sites[0].train)
    return home


def run_file(tables: dict[str, Any]) -> str:
    """A run file of these tables."""
    from fedlatent.shared.toml import dumps

    return dumps(tables)


def invited(run: Run, home: ServerHome, folder: Path, *more: str) -> Path:
    """The file of an invitation of hospital-a."""
    target = folder / "a.invite.toml"
    code, printed, error = run(
        *("server", "invite", "hospital-a", folder / "run.toml", "--home", home.root),
        *("-o", target, *more),
    )
    assert code == 0, error
    assert Invitation.load(target).fingerprint in printed
    return target


def test_a_site_joins_by_one_file(run: Run, server: ServerHome, tmp_path: Path) -> None:
    """Server, authority and schema come from it; name and key are ready to be admitted."""
    file = invited(run, server, tmp_path)
    told = Invitation.load(file)
    assert told.server == "fl.example:8443"
    spelled = ":".join(told.fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
    node = tmp_path / "node"
    code, printed, error = run(
        *("client", "join", file, "--data", tmp_path / "beats.npz", "--home", node),
        *("--fingerprint", spelled),
    )
    assert code == 0, error
    assert "node hospital-a made in" in printed
    assert "compare" not in error
    config = NodeConfig.load(node / "node.toml")
    assert config.server is not None
    assert config.server.address == "fl.example:8443"
    assert config.data.record_schema == FEDERATION.schema
    assert (node / "ca.crt").read_bytes() == server.ca_certificate.read_bytes()
    assert site_of_key((node / "keys" / "node.pub").read_text()) == "hospital-a"
    assert not (node / "ledger.db").exists()


def test_without_a_fingerprint_it_is_said_what_to_compare(
    run: Run, server: ServerHome, tmp_path: Path
) -> None:
    """The node is made, and the fingerprint shown."""
    file = invited(run, server, tmp_path, "--address", "[::1]:9000")
    code, _, error = run(
        *("client", "join", file, "--data", tmp_path / "beats.npz", "--home", tmp_path / "node"),
    )
    assert code == 0
    assert Invitation.load(file).fingerprint in error


def test_what_the_policy_would_refuse_is_said_before_anything_is_charged(
    run: Run, server: ServerHome, tmp_path: Path
) -> None:
    """A delta too large for these records is a warning when the node is made."""
    tables = tiny_run(FEDERATION, privacy=NUMBERS | {"delta": 0.01}).model_dump(mode="json")
    (tmp_path / "run.toml").write_text(run_file(tables))
    file = invited(run, server, tmp_path)
    code, printed, _ = run(
        *("client", "join", file, "--data", tmp_path / "beats.npz", "--home", tmp_path / "node"),
        "--json",
    )
    assert code == 0
    warning = json.loads(printed)["warning"]
    assert "this node would refuse the run of the invitation: Expected delta of at most" in warning


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint of the certificate, got another"),
        ({"protocol": PROTOCOL + 1}, f"protocol {PROTOCOL} of this program, got {PROTOCOL + 1}"),
        ({"site": "../a"}, "site"),
        ({"server": "fl.example"}, "server"),
        ({"server": "fl.example:99999"}, "a server address as host:port, got 'fl.example:99999'"),
        ({"server": "fl\x1b[31m.example:8443"}, "server"),
        ({"certificate": "none"}, "Expected one certificate"),
        ({"secret": "x"}, "secret"),
        ({"run": {}}, "run"),
    ],
)
def test_a_changed_invitation_makes_no_node(
    run: Run, server: ServerHome, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """One sentence names the field, and no home is left."""
    file = invited(run, server, tmp_path)
    file.write_text(run_file(tomllib.loads(file.read_text()) | change))
    node = tmp_path / "node"
    code, printed, _ = run(
        "client", "join", file, "--data", tmp_path / "beats.npz", "--home", node, "--json"
    )
    assert code == 2
    assert words in json.loads(printed)["error"]["message"]
    assert not node.exists()


def test_a_second_authority_behind_the_first_is_refused(
    run: Run, server: ServerHome, tmp_path: Path
) -> None:
    """TLS would trust both, and the fingerprint speaks of the first alone."""
    file = invited(run, server, tmp_path)
    other = ServerHome(tmp_path / "other")
    init_server(other, host="127.0.0.1", port=8444, names=[])
    tables = tomllib.loads(file.read_text())
    both = tables["certificate"] + other.ca_certificate.read_text()
    file.write_text(run_file(tables | {"certificate": both}))
    node = tmp_path / "node"
    place = ("--data", tmp_path / "beats.npz", "--home", node, "--json")
    told = ("--fingerprint", tables["fingerprint"])
    code, printed, _ = run("client", "join", file, *place, *told)
    assert code == 2
    assert "Expected one certificate" in json.loads(printed)["error"]["message"]
    (tmp_path / "both.crt").write_text(both)
    made = ("--server", "fl.example:8443", "--ca", tmp_path / "both.crt")
    code, printed, _ = run(
        "client", "init", "hospital-a", *made, "--schema", tmp_path / "run.toml", *place
    )
    assert code == 2
    assert "got 2" in json.loads(printed)["error"]["message"]
    assert not node.exists()


def test_of_the_certificate_alone_is_kept(run: Run, server: ServerHome, tmp_path: Path) -> None:
    """Text around it, such as a block that only OpenSSL reads, does not reach the node."""
    file = invited(run, server, tmp_path)
    tables = tomllib.loads(file.read_text())
    block = tables["certificate"].replace("CERTIFICATE", "TRUSTED CERTIFICATE")
    file.write_text(run_file(tables | {"certificate": block + tables["certificate"]}))
    node = tmp_path / "node"
    code, printed, error = run(
        "client", "join", file, "--data", tmp_path / "beats.npz", "--home", node, "--json"
    )
    assert code == 0, error
    assert json.loads(printed)["authority"] == tables["fingerprint"]
    assert (node / "ca.crt").read_bytes() == server.ca_certificate.read_bytes()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:8443", "the site's own machine"),
        ("other.example:8443", "add it to 'names' in server.toml"),
        ("FL.example:9000", None),
    ],
)
def test_an_address_that_sites_cannot_use_is_said_to_the_operator(
    run: Run, server: ServerHome, tmp_path: Path, address: str, words: str | None
) -> None:
    """Loopback and names that are not in the server's certificate are a warning at once."""
    code, printed, _ = run(
        *("server", "invite", "hospital-a", tmp_path / "run.toml", "--home", server.root),
        *("-o", tmp_path / "a.toml", "--address", address, "--json"),
    )
    assert code == 0
    warning = json.loads(printed)["warning"]
    assert warning is None if words is None else words in warning


def test_another_fingerprint_than_told_is_refused(
    run: Run, server: ServerHome, tmp_path: Path
) -> None:
    """Whoever swapped the file is found out."""
    file = invited(run, server, tmp_path)
    code, _, error = run(
        *("client", "join", file, "--data", tmp_path / "beats.npz", "--home", tmp_path / "node"),
        *("--fingerprint", "ab" * 32),
    )
    assert code == 2
    assert "do not use this file" in " ".join(error.split())
    assert not (tmp_path / "node").exists()


def admitted(**records: int | None) -> list[Site]:
    """Sites with these numbers of records."""
    return [
        Site(name=name, node_id="1", fingerprint="", public_key="", admitted="", records=count)
        for name, count in records.items()
    ]


def test_sites_that_will_refuse_a_delta_are_named_before_the_run() -> None:
    """A warning while the quorum can be reached without them, and a refusal where it cannot."""
    tables = tiny_run(FEDERATION, privacy=NUMBERS | {"delta": 1e-3}).model_dump(mode="json")
    asked = type(tiny_run(FEDERATION)).parse(
        tables | {"federation": {"nodes": 3, "quorum": 2}}, "test"
    )
    plan = PrivacyPlan.from_config(asked)
    few = admitted(a=90, b=90, c=500)
    (told, *_) = worries(asked, plan, few)
    assert "c (500 records) will refuse" in told
    with pytest.raises(ConfigError, match="fewer than the quorum of 2") as refused:
        worries(asked, plan, admitted(a=90, b=800, c=500))
    assert refused.value.field == "privacy.delta"
    assert not any("refuse" in one for one in worries(asked, plan, admitted(a=90, b=90, c=None)))
