"""Each data set is made from originals in their own format, here tiny ones."""

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.preprocessing import MinMaxScaler

from fedlatent.shared.data.catalog import CATALOG
from fedlatent.shared.errors import DataError
from fedlatent.simulations.catalog import hearts, images, servers, tables
from fedlatent.simulations.catalog.bringing import made
from fedlatent.simulations.catalog.places import Folder
from fedlatent.simulations.catalog.preparation import PREPARATIONS

LENGTH = 141_000  # samples of a record, so that the strip of seconds 300 to 390 is in it
#: Times and codes of annotations: rhythm, normal, ventricular, noise, normal, left bundle branch.
MARKS = ((18, 28), (400, 1), (800, 5), (900, 14), (109_000, 1), (140_500, 2))


def arrays_of(files: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of the only file."""
    ((_, data),) = files.items()
    with np.load(io.BytesIO(data)) as found:
        return {key: found[key] for key in found.files}


def table_of(data: bytes) -> pd.DataFrame:
    """The table of a gzipped file."""
    return pd.read_csv(io.BytesIO(gzip.decompress(data)))


def format_212(first: NDArray[np.int64], second: NDArray[np.int64]) -> bytes:
    """Two signals as WFDB stores them."""
    a, b = first & 0xFFF, second & 0xFFF
    return np.stack([a & 255, a >> 8 | (b >> 8) << 4, b & 255], 1).astype(np.uint8).tobytes()


def mit_annotations(marks: tuple[tuple[int, int], ...]) -> bytes:
    """An annotation file, with a text and a long skip."""
    words, last = [], 0
    for time, code in marks:
        if time - last > 1023:
            words += [hearts._SKIP << 10, (time - last) >> 16, (time - last) & 0xFFFF]
            words.append(code << 10)
        else:
            words.append(code << 10 | (time - last))
        if code == 28:
            words += [hearts._AUX << 10 | 3, *struct.unpack("<2H", b"(N\0\0")]
        last = time
    return struct.pack(f"<{len(words) + 1}H", *words, 0)


@pytest.fixture(scope="module")
def records() -> dict[str, bytes]:
    """22 records of two leads; in 114 MLII is the second."""
    time = np.arange(LENGTH)
    found: dict[str, bytes] = {}
    for number, patient in enumerate(hearts.PATIENTS):
        wanted = 1024 + number + (100 * np.sin(time / 50)).astype(np.int64)
        leads = [f"{patient}.dat 212 200 11 1024 1 2 0 {name}" for name in ("MLII", "V5")]
        signals = [wanted, 2000 - wanted]
        if patient == 114:
            leads.reverse()
            signals.reverse()
        header = "\n".join([f"{patient} 2 360 {LENGTH}", *leads, "# a note"])
        found[f"{patient}.hea"] = header.encode()
        found[f"{patient}.dat"] = format_212(*signals)
        found[f"{patient}.atr"] = mit_annotations(MARKS)
    return found


def test_a_record_is_read_as_wfdb_writes_it(records: Mapping[str, bytes]) -> None:
    """Signals keep their sign, annotations their times over skips and texts, and noise is none."""
    levels = hearts.signals_212(format_212(np.array([-2048, 5]), np.array([2047, -1])))
    assert levels.tolist() == [[-2048, 5], [2047, -1]]
    assert [time for time, _ in hearts.annotations(records["101.atr"])] == [at for at, _ in MARKS]
    found = hearts.recording(records, 114)
    assert found.symbols == "NVNL"
    assert found.samples.tolist() == [400, 800, 109_000, 140_500]
    assert found.microvolts[0] == 5.0 * hearts.PATIENTS.index(114)
    with pytest.raises(ValueError, match="MLII"):
        hearts.recording({**records, "101.hea": records["101.hea"].replace(b"MLII", b"V1")}, 101)


def test_beats_and_strips(records: Mapping[str, bytes]) -> None:
    """Drawn beats are cut at half the rate around their peak; strips keep the beats inside."""
    beats = arrays_of(hearts.beats(records))
    drawn = {one: hearts._drawn()[one][:4] for one in hearts.PATIENTS}
    assert len(beats["X"]) == sum(int(bits.sum()) for bits in drawn.values()) > 0
    assert (beats["X"].shape[1:], beats["X"].dtype) == ((128,), np.int16)
    assert set(beats["symbol"]) <= {"N", "V", "L"}
    assert beats["classes"][beats["y"][beats["symbol"] == "V"]].tolist() == ["V"] * int(
        (beats["symbol"] == "V").sum()
    )
    first = np.flatnonzero(beats["sample"] == 400)[0]
    patient = hearts.PATIENTS.index(beats["record"][first])
    wave = 5 * (100 * np.sin(400 / 50)).astype(np.int64) + 5 * patient
    assert abs(int(beats["X"][first, 48]) - wave) <= 10
    strips = arrays_of(hearts.strips(records))
    assert strips["X"].shape == (22, 32_400)
    assert strips["beat_sample"].tolist() == [1000] * 22
    assert strips["beat_row"].tolist() == list(range(22))


def test_every_patient_has_700_drawn_beats() -> None:
    """The stored draw is of the published size."""
    assert {one: int(bits.sum()) for one, bits in hearts._drawn().items()} == dict.fromkeys(
        hearts.PATIENTS, 700
    )


def saved(array: NDArray[Any]) -> bytes:
    """The bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_ecg5000_takes_the_scaling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows get back their values; official rows come first with their class; one scaler alone."""
    raw = np.random.default_rng(0).normal(size=(6, 140))
    scaler = MinMaxScaler().fit(raw[:4])
    stream, official = io.BytesIO(), io.BytesIO()
    joblib.dump(scaler, stream)
    np.savetxt(official, np.column_stack([[1.0, 4.0], raw[[3, 5]]]))
    originals = {
        "processed/train_data.npy": saved(scaler.transform(raw[:4])),
        "processed/test_data.npy": saved(scaler.transform(raw[4:])),
        "processed/test_labels.npy": saved(np.array([0.0, 1.0])),
        "processed/scaler.pkl": stream.getvalue(),
        "raw/ECG5000_TRAIN.txt": official.getvalue(),
    }
    with pytest.raises(ValueError, match="alone is opened"):
        hearts.ecg5000(originals)
    monkeypatch.setattr(hearts, "SCALER", hashlib.sha256(stream.getvalue()).hexdigest())
    found = arrays_of(hearts.ecg5000(originals))
    np.testing.assert_allclose(found["X"], raw[[3, 5, 0, 1, 2, 4]], atol=1e-6)
    assert found["anomaly"].tolist() == [0, 1, 0, 0, 0, 0]
    assert found["y5"].tolist() == [1, 4, 0, 0, 0, 0]
    assert found["official_train"].tolist() == [True] * 2 + [False] * 4


def test_smd_is_text() -> None:
    """Rows of numbers become a file a machine, stored column by column."""
    originals = {
        name: b"0\n1\n0\n" if "label" in name else b"0.5,0.25\n1,0\n0,0.125\n"
        for name in servers.SMD
    }
    files = servers.smd(originals)
    assert set(files) == {file.name for file in CATALOG["smd"].files}
    found = arrays_of({"one": files["smd_machine-1-6.npz"]})
    assert found["train"].tolist() == [[0.5, 0.25], [1, 0], [0, 0.125]]
    assert found["train"].dtype == np.float32
    assert found["test_label"].tolist() == [0, 1, 0]


def test_asd_is_pickles_of_arrays_alone() -> None:
    """Pickled arrays are read; a pickle that would run anything else is refused."""
    originals = {
        name: pickle.dumps(np.full((2,) if "label" in name else (2, 3), float(number)))
        for number, name in enumerate(servers.ASD)
    }
    found = arrays_of(servers.asd(originals))
    assert found["s01_train"].tolist() == [[0.0] * 3] * 2
    assert (found["s08_label"].dtype, found["s08_label"].tolist()) == (np.uint8, [23, 23])
    for wrong in (pickle.dumps(print), b"no pickle", b""):
        with pytest.raises(ValueError, match="pickle"):
            servers.plain_pickle(wrong)


def test_nab_marks_the_rows_of_a_window() -> None:
    """Values keep their digits, and rows from the first to the last of a window are anomalies."""
    rows = "".join(f"2014-02-14 14:{5 * i:02d}:00,0.1000000000000000{i}\n" for i in range(4))
    originals = {name: f"timestamp,value\n{rows}".encode() for name in servers.NAB}
    window = ["2014-02-14 14:05:00.000000", "2014-02-14 14:10:00.000000"]
    windows = {f"{name}.csv": [] for name in servers.SERIES} | {
        f"{servers.SERIES[1]}.csv": [window]
    }
    originals["labels/combined_windows.json"] = json.dumps(windows).encode()
    data = servers.nab(originals)["nab_real.csv.gz"]
    found = table_of(data)
    assert found["series"].nunique() == 22
    assert found["anomaly"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0] + [0] * 80
    assert b",0.10000000000000003,0\n" in gzip.decompress(data)


def test_nsl_kdd_gets_names_and_categories() -> None:
    """Rows keep their text columns, and each attack its category; an unknown one is refused."""
    row = ",".join(["0", "tcp", "http", "SF", *["0"] * 19, "0.50", *["1"] * 17, "smurf", "21"])
    files = tables.nsl_kdd(dict.fromkeys(tables.NSL_KDD, f"{row}\n".encode()))
    found = table_of(files["nsl_kdd_test.csv.gz"])
    assert (*found.columns[-3:], len(found.columns)) == ("attack", "difficulty", "category", 44)
    assert found.iloc[0][["service", "attack", "category"]].tolist() == ["http", "smurf", "dos"]
    assert found["count"].tolist() == [0]
    with pytest.raises(ValueError, match="category"):
        tables.nsl_kdd(dict.fromkeys(tables.NSL_KDD, row.replace("smurf", "xyz").encode()))


def test_heart_disease_is_one_table() -> None:
    """What is a question mark at UCI is empty; disease is any grade above 0."""
    rows = (
        b"63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,?,6.0,0\n"
        b"28,1,2,130,132,0,2,185,0,0,?,-9,?,3\n"
    )
    data = tables.heart_disease(dict.fromkeys(tables.HEART_DISEASE, rows))["heart_disease.csv.gz"]
    found = table_of(data)
    assert found["hospital"].unique().tolist() == list(tables.HOSPITALS)
    assert found["disease"].tolist() == [0, 1] * 4
    assert found["ca"].isna().all()
    assert found["thal"].isna().tolist() == [False, True] * 4


def test_transformers_are_verbatim() -> None:
    """The files are gzipped and otherwise untouched."""
    files = tables.verbatim({"ETTh1.csv": b"date,OT\r\n1,2\r\n"})
    assert gzip.decompress(files["ETTh1.csv.gz"]) == b"date,OT\r\n1,2\r\n"


def as_idx(array: NDArray[np.uint8]) -> bytes:
    """A gzipped IDX file."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


def test_mnist_and_fashion_are_idx_files() -> None:
    """Images and classes are read, and cut to the first ones."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7000, 2, 2), dtype=np.uint8)
    classes = rng.integers(0, 10, 7000, dtype=np.uint8)
    parts = {True: as_idx(pictures), False: as_idx(classes)}
    originals = {name: parts["images" in name] for name in images.MNIST}
    found = arrays_of({"one": images.mnist(originals)["mnist_train20k.npz"]})
    assert np.array_equal(found["X"], pictures)
    assert np.array_equal(found["y"], classes)
    found = arrays_of(images.fashion(originals))
    assert np.array_equal(found["X_train"], pictures[:6500])
    assert np.array_equal(found["y_test"], classes[:1500])
    assert found["names"][9] == "Ankle boot"
    with pytest.raises(ValueError, match="IDX"):
        images.idx(gzip.compress(b"\0\0\x0d\1" + bytes(8)))


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_omniglot_is_ink_of_drawers() -> None:
    """Black strokes become ink; the drawer and the alphabet make the client."""
    drawing = np.full((105, 105), 255, np.uint8)
    drawing[:, :15] = 0  # four of 28 columns
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for alphabet, letter, name in (("Latin", 2, "0700_03"), ("Greek", 1, "0394_20")):
            folder = f"images_background_small1/{alphabet}/character{letter:02d}"
            archive.writestr(f"{folder}/{name}.png", as_png(drawing))
        archive.writestr("__MACOSX/images_background_small1/x.png", b"")
    found = arrays_of(images.omniglot({"images_background_small1.zip": stream.getvalue()}))
    assert found["X"].shape == (2, 28, 28)
    assert (found["X"][0, :, :4] == 255).all()
    assert (found["X"][0, :, 4:] == 0).all()
    assert found["alphabet_names"].tolist() == ["Greek", "Latin"]
    assert found["client"].tolist() == [19, 22]
    assert found["character"].tolist() == [1, 2]


def test_kodak_is_the_middle() -> None:
    """The crop is central, whichever way the photograph lies."""
    pixels = np.zeros((260, 388, 3), np.uint8)
    pixels[2:258, 2:386] = 7
    found = arrays_of(images.kodak(dict.fromkeys(images.KODAK, as_png(pixels))))
    assert found["X"].shape == (12, 256, 384, 3)
    assert (found["X"] == 7).all()
    assert found["number"].tolist() == list(images.NUMBERS)


def test_moses_is_drawn_from_the_package() -> None:
    """Molecules of both sets keep their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for part, text in (("train", b"SMILES\nCC\nCO\n"), ("test", b"SMILES\nC#N\n")):
            data = gzip.compress(text)
            entry = tarfile.TarInfo(f"molsets-0.3.1/moses/dataset/data/{part}.csv.gz")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    files = PREPARATIONS["moses"].make({"molsets-0.3.1.tar.gz": stream.getvalue()})
    text = gzip.decompress(files["moses_130k.csv.gz"])
    assert text == b"smiles,split\nCC,train\nCO,train\nC#N,test\n"


def test_esol_has_four_columns() -> None:
    """Columns get short names; spaces around SMILES go, and digits stay."""
    header = "Compound ID,other,Molecular Weight,measured log solubility in mols per litre,smiles"
    data = f'{header}\n"a, b",1,201.22500000000002,-3.3,CC \n'.encode()
    files = PREPARATIONS["esol"].make({"delaney-processed.csv": data})
    text = gzip.decompress(files["esol.csv.gz"]).decode()
    assert text == 'smiles,logS,mol_weight,name\nCC,-3.3,201.22500000000002,"a, b"\n'


def test_every_data_set_has_a_preparation() -> None:
    """Each makes the files of the catalogue, from originals that web addresses name."""
    assert list(PREPARATIONS) != []
    assert set(PREPARATIONS) == set(CATALOG)
    for one in PREPARATIONS.values():
        for name, address in one.originals.items():
            assert address.startswith("https://")
            assert name


@pytest.mark.parametrize("name", sorted(set(PREPARATIONS) - {"etth1", "etth2"}))  # verbatim
def test_originals_of_another_kind_are_one_sentence(name: str, tmp_path: Path) -> None:
    """Files that have the names of the originals and nothing else end in a DataError."""
    for original in PREPARATIONS[name].originals:
        path = tmp_path / original
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"something else")
    with pytest.raises(DataError, match=f"^Expected the originals of {name} in "):
        made(name, Folder(tmp_path), lambda sentence, share: None)
