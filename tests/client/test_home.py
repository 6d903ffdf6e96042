"""Where a node's files are."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.client.home import ClientHome
from fedlatent.server.home import ServerHome
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.sockets import MAX_SOCKET_PATH, prepare_socket


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short path in the place of the machine's temporary one."""
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as name:
        monkeypatch.setattr("tempfile.tempdir", name)
        yield Path(name)


def test_the_socket_is_in_the_home(tmp_path: Path) -> None:
    """A home with a short path holds its own socket."""
    home = ClientHome(Path("/tmp/node"))
    assert home.socket == Path("/tmp/node/node.sock")


def test_a_long_home_gets_a_short_private_socket(temporary: Path) -> None:
    """A long path moves the socket to a private folder, the same one each time."""
    home = ClientHome(temporary / ("x" * MAX_SOCKET_PATH))
    other = ClientHome(temporary / ("y" * MAX_SOCKET_PATH))
    path = prepare_socket(home.socket)
    assert len(str(path)) <= MAX_SOCKET_PATH
    assert path == ClientHome(home.root).socket != other.socket
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_an_open_socket_folder_is_refused(temporary: Path) -> None:
    """A folder in which others could put their own socket is not used."""
    home = ClientHome(temporary / ("x" * MAX_SOCKET_PATH))
    prepare_socket(home.socket).parent.chmod(0o777)
    with pytest.raises(ServiceError, match="no one else can write"):
        prepare_socket(home.socket)


def test_a_hopeless_socket_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the temporary folder's path is long too, the remedy is said."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * MAX_SOCKET_PATH)))
    with pytest.raises(ServiceError, match="set TMPDIR"):
        prepare_socket(ClientHome(tmp_path / ("x" * MAX_SOCKET_PATH)).socket)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("kind", [ClientHome, ServerHome])
def test_a_home_of_someone_else_is_refused(
    tmp_path: Path, kind: type[ClientHome] | type[ServerHome]
) -> None:
    """Its owner could put other files in the place of ours, whatever their modes."""
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ServiceError, match="a folder of this user"):
        kind(tmp_path).create()
    assert list(tmp_path.iterdir()) == []


def test_the_home_is_private_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the home when no path is given, and it is made for its owner alone."""
    monkeypatch.setenv("FEDLATENT_CLIENT_HOME", str(tmp_path / "a"))
    home = ClientHome.find()
    assert home.root == tmp_path / "a"
    assert ClientHome.find(tmp_path / "b").root == tmp_path / "b"
    home.create()
    assert home.root.stat().st_mode & 0o777 == 0o700
