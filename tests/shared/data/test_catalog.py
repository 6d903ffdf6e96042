"""The catalogue of data sets, the data folder, and the sentence where a file is not there."""

import re
from pathlib import Path

import pytest

from fedlatent.shared.data.catalog import CATALOG, absent, data_folder, paths, require
from fedlatent.shared.errors import ConfigError, DataError


def test_every_entry_is_whole() -> None:
    """Each data set tells its origin, its licence and the digests of files that no other has."""
    names = [file.name for one in CATALOG.values() for file in one.files]
    assert len(set(names)) == len(names)
    for one in CATALOG.values():
        assert one.about
        assert one.licence
        assert one.origin.startswith("https://")
        for file in one.files:
            assert file.size > 0
            assert file.name.endswith((".npz", ".csv.gz"))
            for digest in (file.sha256, *file.contents):
                assert re.fullmatch(r"[0-9a-f]{64}", digest)
        remade = any(len(file.contents) > 1 for file in one.files)
        assert bool(one.remark) == remade


def test_the_folder_is_named_near_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chosen folder wins, then FEDLATENT_DATA, then ../shared/data, then the user's."""
    work = tmp_path / "clone"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("FEDLATENT_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert data_folder() == tmp_path / "share/fedlatent/data"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "home/.local/share/fedlatent/data"
    (tmp_path / "shared/data").mkdir(parents=True)
    assert data_folder() == Path("../shared/data")
    monkeypatch.setenv("FEDLATENT_DATA", "")
    assert data_folder() == Path("../shared/data")
    monkeypatch.setenv("FEDLATENT_DATA", "elsewhere")
    assert data_folder() == Path("elsewhere")
    assert data_folder(tmp_path) == tmp_path


def test_an_account_without_a_home_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no home to keep data in, the sentence names the variable."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEDLATENT_DATA", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match="FEDLATENT_DATA"):
        data_folder()


def test_what_is_missing_is_one_sentence_with_the_command(tmp_path: Path) -> None:
    """All missing data sets are named at once, with the command that brings them."""
    (tmp_path / "mnist_train20k.npz").touch()
    with pytest.raises(DataError) as caught:
        require(tmp_path, ["mnist", "smd", "mnist"], "study x")
    assert str(caught.value) == (
        f"Expected mnist_test10k.npz, smd_machine-1-6.npz, smd_machine-2-1.npz and 3 more in the "
        f"data folder {tmp_path} for study x, got none; run 'fedlatent data get mnist smd', with "
        "--from FOLDER for a copy at hand."
    )
    assert (caught.value.field, caught.value.reason) == ("mnist", "absent")
    with pytest.raises(DataError, match="data get kodak'"):
        paths(tmp_path, "kodak")
    assert absent(tmp_path, ["kodak"]) == {"kodak": ["kodak_crops.npz"]}
    (tmp_path / "kodak_crops.npz").touch()
    assert paths(tmp_path, "kodak") == [tmp_path / "kodak_crops.npz"]
