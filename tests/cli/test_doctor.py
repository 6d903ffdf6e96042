"""``fedlatent doctor`` names what is wrong on a machine, and changes nothing."""

import json
import socket
from pathlib import Path

import numpy as np

from fedlatent.client.home import ClientHome
from fedlatent.client.service import init_client
from fedlatent.server.home import ServerHome
from fedlatent.server.service import init_server
from tests.cli.conftest import Run
from tests.simulations.support import tiny_federation


def server(folder: Path, port: int) -> ServerHome:
    """A server that was made and does not run."""
    home = ServerHome(folder / "server")
    init_server(home, host="127.0.0.1", port=port, names=())
    return home


def node(folder: Path, port: int) -> ClientHome:
    """A node of that server."""
    place = ServerHome(folder / "server")
    federation, home = tiny_federation(), ClientHome(folder / "node")
    np.savez(folder / "beats.npz", X=federation.sites[0].train)
    init_client(
        home,
        site="a",
        server=f"127.0.0.1:{port}",
        ca_certificate=place.ca_certificate.read_bytes(),
        data={"path": str(folder / "beats.npz"), "schema": federation.schema.to_dict()},
        policy={"max_epsilon": 4.0},
    )
    return home


def examined(run: Run, home: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and health and text by name."""
    code, printed, error = run("doctor", "--home", home, "--json")
    assert error == ""
    rows = json.loads(printed)["findings"]
    return code, {row["name"]: (row["health"], row["text"]) for row in rows}


def free_port() -> int:
    """A port that nobody holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_new_server_is_well_but_for_not_running(run: Run, tmp_path: Path) -> None:
    """Clock, versions, disk, permissions, port and files; the table says the same."""
    home = server(tmp_path, free_port())
    before = sorted(one.name for one in home.root.rglob("*"))
    code, found = examined(run, home.root)
    assert code == 0
    assert {name for name, (health, _) in found.items() if health == "ill"} == set()
    assert found["server"][0] == "warning"
    assert "flwr 1." in found["versions"][1]
    assert sorted(one.name for one in home.root.rglob("*")) == before
    code, printed, _ = run("doctor", "--home", home.root)
    assert code == 0
    assert "clock: the clock says" in printed


def test_what_is_ill_is_one_sentence_each(run: Run, tmp_path: Path) -> None:
    """A port that is held, a key that others can read, and a torn registry end it with 1."""
    port = free_port()
    home = server(tmp_path, port)
    home.ca_key.chmod(0o644)
    home.registry.write_bytes(b"SQLite format 3\0" + b"x" * 2000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        code, found = examined(run, home.root)
    assert code == 1
    ill = {name for name, (health, _) in found.items() if health == "ill"}
    assert ill == {"keys", "registry.db", "port"}
    assert f"port {port} of 127.0.0.1 to be free" in found["port"][1]
    assert "chmod 600" in found["keys"][1]


def test_a_node_without_its_server_and_records_is_ill(run: Run, tmp_path: Path) -> None:
    """The server that does not answer and the records that are gone are named."""
    port = free_port()
    server(tmp_path, port)
    home = node(tmp_path, port)
    code, found = examined(run, home.root)
    assert code == 1
    assert found["records"][0] == "well"
    assert "delta of at most" in found["records"][1]
    assert found["ledger"] == ("well", "nothing was charged yet")
    assert found["server"][0] == "ill"
    assert f"127.0.0.1:{port} to answer" in found["server"][1]
    (tmp_path / "beats.npz").unlink()
    code, found = examined(run, home.root)
    assert found["records"][0] == "ill"


def test_settings_that_cannot_be_read_are_one_finding(run: Run, tmp_path: Path) -> None:
    """All else that was looked at is still said, on either side."""
    port = free_port()
    for home in (server(tmp_path, port), node(tmp_path, port)):
        with home.config.open("a") as stream:
            stream.write("port = [")
        code, found = examined(run, home.root)
        assert code == 1
        assert found["settings"][0] == "ill"
        assert "expected TOML" in found["settings"][1]
        assert found["disk"][0] == "well"


def test_a_folder_without_either_is_refused(run: Run, tmp_path: Path) -> None:
    """Nothing is made there."""
    code, _, error = run("doctor", "--home", tmp_path / "none")
    assert code == 2
    assert "a server or a node" in " ".join(error.split())
    assert not (tmp_path / "none").exists()
