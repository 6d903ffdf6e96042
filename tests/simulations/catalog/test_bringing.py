"""Data sets are brought from folders and web addresses, verified, whole or not at all."""

import gzip
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedlatent.shared.data.catalog import CATALOG, DataFile
from fedlatent.shared.errors import ConfigError, DataError, ServiceError
from fedlatent.shared.files import sha256_hex
from fedlatent.simulations.catalog.bringing import bring, check, known, state_of, whole_in
from fedlatent.simulations.catalog.content import content_digest, gzipped, npz
from fedlatent.simulations.catalog.places import Folder, Web, place_of


def quiet(sentence: str, share: float) -> None:
    """Told about progress, and silent."""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Web address of the folder ``tmp_path / "web"``."""
    (tmp_path / "web").mkdir()
    handler = partial(Handler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def patients(data_dir: Path) -> bytes:
    """The prepared file of heart_disease."""
    return (data_dir / "heart_disease.csv.gz").read_bytes()


def test_states_of_a_file() -> None:
    """The same bytes, the same content, a remade one, another content and damage are told apart."""
    data = npz({"a": np.arange(3), "b": np.zeros((2, 2), np.float32, order="F")})
    other = npz({"b": np.zeros((2, 2), np.float32), "a": np.arange(3)})
    remade = npz({"a": np.arange(4)})
    file = DataFile(
        name="x.npz",
        size=len(data),
        sha256=sha256_hex(data),
        contents=(content_digest("x.npz", data), content_digest("x.npz", remade)),
    )
    found = [
        state_of(file, one)
        for one in (data, other, remade, npz({"a": np.arange(4.0)}), data[:50], b"", b"\x93NUMPY")
    ]
    assert found == ["same file", "same content", "remade", "other content"] + ["damaged"] * 3
    assert content_digest("x.csv.gz", gzipped(b"a")) == sha256_hex(b"a")
    with pytest.raises(DataError, match="damaged"):
        content_digest("x.csv.gz", gzipped(b"a" * 100)[:20])


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    """An archive of objects counts as damaged."""
    np.savez(tmp_path / "x.npz", a=np.array([print], dtype=object))
    with pytest.raises(DataError, match="damaged"):
        content_digest("x.npz", (tmp_path / "x.npz").read_bytes())


def test_prepared_files_from_anywhere_below_a_folder(patients: bytes, tmp_path: Path) -> None:
    """A copy is found below the folder, written whole, and left alone the second time."""
    copy, folder = tmp_path / "copies/deep", tmp_path / "data"
    copy.mkdir(parents=True)
    (copy / "heart_disease.csv.gz").write_bytes(patients)
    held = bring("heart_disease", folder, Folder(tmp_path / "copies"), quiet)
    assert [one.state for one in held] == ["same file"]
    assert [path.name for path in folder.iterdir()] == ["heart_disease.csv.gz"]
    again = bring("heart_disease", folder, Folder(tmp_path / "nowhere"), quiet)
    assert [one.state for one in again] == ["same file"]
    assert whole_in(Folder(tmp_path / "copies")) == ["heart_disease"]


def test_a_copy_that_another_program_packed_is_the_same(patients: bytes, tmp_path: Path) -> None:
    """Other bytes of the same content are taken."""
    (tmp_path / "heart_disease.csv.gz").write_bytes(gzip.compress(gzip.decompress(patients), 1))
    held = bring("heart_disease", tmp_path / "data", Folder(tmp_path), quiet)
    assert [one.state for one in held] == ["same content"]


@pytest.mark.parametrize("changed", [b"x", None])
def test_another_content_is_refused_and_nothing_written(
    changed: bytes | None, patients: bytes, tmp_path: Path
) -> None:
    """A copy with other or damaged content ends in one sentence; nothing is written."""
    data = patients[:-9] if changed is None else gzip.compress(gzip.decompress(patients) + changed)
    (tmp_path / "heart_disease.csv.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"^Expected heart_disease\.csv\.gz of the catalogue"):
        bring("heart_disease", tmp_path / "data", Folder(tmp_path), quiet)
    assert not (tmp_path / "data").exists()


def test_originals_at_hand_are_prepared(data_dir: Path, tmp_path: Path) -> None:
    """Where the prepared file is not there, it is made from the original, and verified."""
    path = data_dir / "ETTh1.csv.gz"
    (tmp_path / "ETT-small").mkdir()
    (tmp_path / "ETT-small/ETTh1.csv").write_bytes(gzip.decompress(path.read_bytes()))
    told: list[str] = []
    held = bring("etth1", tmp_path / "data", Folder(tmp_path), lambda what, _: told.append(what))
    assert [one.state for one in held] == ["same content"]
    assert told == ["etth1: made from the originals"]


def test_nothing_there_names_what_is_looked_for(tmp_path: Path) -> None:
    """A folder with neither file nor originals is told with both names and the origin."""
    with pytest.raises(DataError) as caught:
        bring("smd", tmp_path / "data", Folder(tmp_path), quiet)
    assert str(caught.value) == (
        f"Expected smd_machine-1-6.npz and 4 more or train/machine-1-6.txt, one of the 15 "
        f"originals, in {tmp_path}, got neither; https://github.com/NetManAIOps/OmniAnomaly has "
        "the originals."
    )
    with pytest.raises(DataError, match="prepared files"):
        whole_in(Folder(tmp_path))


def test_a_web_address(patients: bytes, address: str, tmp_path: Path) -> None:
    """Files are downloaded with progress; a page that is not there counts as absent."""
    (tmp_path / "web/heart_disease.csv.gz").write_bytes(patients)
    told: list[tuple[str, float]] = []
    place = place_of(f"{address}/", lambda what, share: told.append((what, share)))
    held = bring("heart_disease", tmp_path / "data", place, quiet)
    assert [one.state for one in held] == ["same file"]
    assert told[-1] == ("heart_disease.csv.gz: 0.0 MB", 1.0)
    with pytest.raises(DataError, match=rf"in {address}/, got neither"):
        bring("etth1", tmp_path / "data", place, quiet)
    with pytest.raises(ConfigError, match="names of data sets"):
        whole_in(place)


def test_originals_of_an_origin(data_dir: Path, address: str, tmp_path: Path) -> None:
    """Originals are taken from the addresses that the preparation names."""
    path = data_dir / "ETTh1.csv.gz"
    (tmp_path / "web/raw.csv").write_bytes(gzip.decompress(path.read_bytes()))
    place = Web(words="its origin", addresses={"ETTh1.csv": f"{address}/raw.csv"}, tell=quiet)
    held = bring("etth1", tmp_path / "data", place, quiet)
    assert [one.state for one in held] == ["same content"]


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection the sentence names the address and the way round it."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)
    with pytest.raises(ServiceError, match=r"^Expected the file at https://.* got no connection"):
        bring("etth2", tmp_path / "data", None, quiet)
    with pytest.raises(ServiceError, match="--from FOLDER"):
        bring("etth2", tmp_path / "data", place_of("http://127.0.0.1:9", quiet), quiet)
    assert not (tmp_path / "data").exists()


def test_wrong_names_and_places(tmp_path: Path) -> None:
    """Unknown data sets and places are config errors that say what there is."""
    with pytest.raises(ConfigError, match="got 'nmist'"):
        known(["mnist", "nmist"])
    assert known(["smd", "mnist", "smd"]) == ["smd", "mnist"]
    for wrong in (str(tmp_path / "none"), "ftp://example.org"):
        with pytest.raises(ConfigError, match="folder"):
            place_of(wrong, quiet)


def test_the_data_folder_is_as_the_catalogue_says(data_dir: Path) -> None:
    """Every prepared file at hand has the SHA-256 and the content that the catalogue tells."""
    held = [one for one in check(data_dir, CATALOG) if one.state != "absent"]
    assert held
    assert {one.state for one in held} == {"same file"}
    for one in held:
        data = (data_dir / one.file.name).read_bytes()
        assert (len(data), content_digest(one.file.name, data)) == (
            one.file.size,
            one.file.contents[0],
        )
