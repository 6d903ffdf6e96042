"""The browser page: a real Chromium, offline, verifies, scores and refuses as a device does."""

import base64
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.server.page import build
from fedlatent.server.page.build import PageReport, build_page, fetch_package
from fedlatent.shared.bundle.archive import MANIFEST, SIGNATURE, pack, parse_bundle, signature_file
from fedlatent.shared.bundle.arrays import pack_arrays
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window, cut, seconds_of
from fedlatent.shared.errors import BundleError, ConfigError, DataError, ServiceError
from fedlatent.shared.export.bundling import BundleContents, make_bundle
from fedlatent.shared.files import write_json
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import build as build_model
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import latent_density, noisy_moments
from tests.server.page_support import Browser, CallFailed, Node, PageServer, Tab, chromium
from tests.shared.bundle import tiny
from tests.shared.data.file_cases import CASES

BEATS = {
    "name": "beat", "shape": [128], "unit": "mV", "scale": 1e-3, "center": "median",
    "lower": -3.0, "upper": 3.0,
}  # fmt: skip
DIGITS = {"name": "digit", "shape": [28, 28], "scale": 1 / 255, "lower": 0.0, "upper": 1.0}
LATENT = 4
RECORDS = 100

CHEAP = settings(max_examples=60, deadline=None)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A built page with what it was built from."""

    report: PageReport
    key: SigningKey
    stranger: SigningKey
    beats: Path
    digits: Path
    records: np.ndarray


def untrained(path: Path, key: SigningKey, name: str, data: Mapping[str, object]) -> Path:
    """A site bundle of a tiny model with random weights, decoder included."""
    options = {"hidden": [16], "latent_dim": LATENT}
    run = RunConfig.parse({"name": name, "data": data, "model": {"options": options}}, "test")
    latents = np.random.default_rng(0).normal(size=(300, LATENT))
    contents = BundleContents(
        kind="site",
        run_id=f"{name}-1",
        run=run,
        model=build_model("gaussian", options, run.data.shape, seed=1),
        density=latent_density([noisy_moments(latents, 3.0, 0.0, SimulationNoise(0))], 3.0, 0.0),
        thresholds=Thresholds(quantile=0.9, absolute=6.5, recentred=None),
        epsilon=3.5,
        delta=1e-5,
        clients=3,
        decoder=True,
    )
    make_bundle(path, contents, key)
    return path


@pytest.fixture(scope="module")
def package() -> Path:
    """The pinned ONNX Runtime Web, fetched once and then kept in the user's cache."""
    try:
        return fetch_package()
    except ServiceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, package: Path) -> Site:
    """Two site bundles and 100 real heart beats on one page."""
    folder = tmp_path_factory.mktemp("site")
    key, stranger = (SigningKey.generate(folder / f"{n}.pem") for n in ("key", "stranger"))
    with np.load(data_dir / "mitbih_beats.npz") as loaded:
        records = loaded["X"][::150][:RECORDS]
    np.savez(folder / "beats.npz", X=records)
    beats = untrained(folder / "beats.fedlatent", key, "beats", BEATS)
    digits = untrained(folder / "digits.fedlatent", key, "digits", DIGITS)
    report = build_page(
        folder / "page",
        [beats, digits],
        [key.public],
        {"real beats": folder / "beats.npz"},
        package=package,
        within_site=True,
    )
    return Site(
        report=report, key=key, stranger=stranger, beats=beats, digits=digits, records=records
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One headless Chromium that reaches 127.0.0.1 and nothing else."""
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The page's modules under Node."""
    running = Node(tmp_path_factory.mktemp("node"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def tiny_key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    """A key for bundles that need no torch."""
    return SigningKey.generate(tmp_path_factory.mktemp("tiny") / "key.pem")


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_key: SigningKey) -> bytes:
    """A whole global bundle as bytes."""
    return tiny.write(tmp_path_factory.mktemp("tiny") / "a.fedlatent", tiny_key).read_bytes()


def contents_of(data: bytes | Path) -> dict[str, bytes]:
    """Files of a bundle by name."""
    with zipfile.ZipFile(data if isinstance(data, Path) else io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def signed(contents: Mapping[str, bytes], manifest: bytes, key: SigningKey) -> bytes:
    """The same files under another manifest, signed by ``key``."""
    signature = signature_file(key.key_id, key.sign(manifest))
    return pack({**contents, MANIFEST: manifest, SIGNATURE: signature})


def text64(data: bytes) -> str:
    """Base64, as the Node side takes bytes."""
    return base64.b64encode(data).decode()


# In the browser.


def self_check(browser: Browser, folder: Path, **query: str) -> tuple[dict[str, Any], list[str]]:
    """The report of a self-check, and every path that the page asked for."""
    with PageServer(folder) as server:
        with browser.open(server.address(report="/report", **query)):
            report = server.reports.get(timeout=120)
        return report, server.asked


def test_the_browser_scores_real_beats_as_python_does(browser: Browser, site: Site) -> None:
    """Offline, 100 heart beats get the device's scores to 1e-4, its flags and its latents."""
    report, asked = self_check(browser, site.report.folder, records="real beats")
    assert report["ok"], report
    table = EdgeModel.load(site.beats, [site.key.public]).score(site.records)
    np.testing.assert_allclose(report["scores"], table.score, rtol=1e-4)
    np.testing.assert_allclose(report["mu"], table.mu, rtol=1e-4, atol=1e-6)
    assert report["flags"] == table.flag.tolist()
    assert 0 < sum(report["flags"]) < RECORDS
    assert report["golden_error"] <= 1e-4
    assert 0 < report["p50_ms"] <= report["p99_ms"]
    assert report["violations"] == []
    steps = ["Archive", "Signature", "Manifest", "Digests", "Runtime", "Golden vectors"]
    assert [(line["name"], line["kind"]) for line in report["steps"]] == [(s, "ok") for s in steps]
    assert "/vendor/ort-wasm.wasm" in asked


def changed_byte(site: Site) -> bytes:
    """One bit of the scorer flipped."""
    contents = contents_of(site.beats)
    graph = bytearray(contents["scorer.onnx"])
    graph[len(graph) // 2] ^= 1
    return pack({**contents, "scorer.onnx": bytes(graph)})


def swapped_file(site: Site) -> bytes:
    """The scorer of another bundle of the same publisher."""
    other = contents_of(site.digits)["scorer.onnx"]
    return pack({**contents_of(site.beats), "scorer.onnx": other})


def edited_manifest(site: Site) -> bytes:
    """A higher threshold under the old signature."""
    contents = contents_of(site.beats)
    text = contents[MANIFEST].replace(b'"absolute":6.5', b'"absolute":9.5')
    assert text != contents[MANIFEST]
    return pack({**contents, MANIFEST: text})


def strange_key(site: Site) -> bytes:
    """Signed anew by a key that the page does not trust."""
    contents = contents_of(site.beats)
    return signed(contents, contents[MANIFEST], site.stranger)


def borrowed_id(site: Site) -> bytes:
    """Signed by a stranger under the id of the trusted key."""
    contents = contents_of(site.beats)
    signature = signature_file(site.key.key_id, site.stranger.sign(contents[MANIFEST]))
    return pack({**contents, SIGNATURE: signature})


def extra_file(site: Site) -> bytes:
    """One more name in the archive."""
    path = site.report.folder.parent / "extra.zip"
    shutil.copy(site.beats, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil.js", b"alert(1)")
    return path.read_bytes()


def trailing_bytes(site: Site) -> bytes:
    """Something behind the end."""
    return site.beats.read_bytes() + b"\0"


def cut_short(site: Site) -> bytes:
    """Half of the file."""
    data = site.beats.read_bytes()
    return data[: len(data) // 2]


ATTACKS: list[tuple[Callable[[Site], bytes], str, str]] = [
    (changed_byte, "Digests", "Expected scorer.onnx to match its digest"),
    (swapped_file, "Digests", "Expected scorer.onnx to match its digest"),
    (edited_manifest, "Signature", "Expected a valid signature of key"),
    (strange_key, "Signature", "got unknown key"),
    (borrowed_id, "Signature", "Expected a valid signature of key"),
    (extra_file, "Archive", "Expected only known file names in a bundle, got ../evil.js"),
    (trailing_bytes, "Archive", "Expected an edge bundle"),
    (cut_short, "Archive", "Expected an edge bundle"),
]


@pytest.fixture(scope="module")
def attacked(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same page on a server that serves changed bundles instead."""
    folder = tmp_path_factory.mktemp("attacked") / "page"
    shutil.copytree(site.report.folder, folder)
    index = json.loads((folder / "page.json").read_text())
    for attack, _, _ in ATTACKS:
        (folder / "bundles" / attack.__name__).write_bytes(attack(site))
        index["bundles"].append({"name": attack.__name__, "file": f"bundles/{attack.__name__}"})
    write_json(folder / "page.json", index)
    return folder


@pytest.mark.parametrize(
    ("attack", "step", "sentence"), ATTACKS, ids=[attack.__name__ for attack, _, _ in ATTACKS]
)
def test_a_changed_bundle_is_refused_by_name_and_nothing_is_loaded(
    browser: Browser,
    site: Site,
    attacked: Path,
    attack: Callable[[Site], bytes],
    step: str,
    sentence: str,
) -> None:
    """The failing step says why, as on a device, and ONNX Runtime is not even fetched."""
    report, asked = self_check(browser, attacked, bundle=attack.__name__)
    assert not report["ok"]
    assert sentence in report["error"]
    refused = [line for line in report["steps"] if line["kind"] == "bad"]
    assert [(line["name"], line["text"]) for line in refused] == [(step, report["error"])]
    assert not any(path.startswith("/vendor") for path in asked)
    with pytest.raises(BundleError):
        parse_bundle(attack(site), [site.key.public])


@pytest.fixture
def tab(browser: Browser, site: Site) -> Iterator[Tab]:
    """The page as a person sees it, with the heart beats verified."""
    with (
        PageServer(site.report.folder) as server,
        browser.open(server.address(bundle="beats.fedlatent")) as opened,
    ):
        assert opened.verdict() == "ok"
        yield opened


def test_a_key_that_a_person_opens_is_the_only_one_trusted(
    tab: Tab, site: Site, tmp_path: Path
) -> None:
    """A stranger's key refuses the bundle; the publisher's own key brings it back."""
    stranger = site.report.folder.parent / "stranger.pem.pub"
    tab.give_files(stranger)
    tab.wait("document.getElementById('verification').dataset.state === 'bad'")
    assert f"({site.stranger.key_id}), got unknown key {site.key.key_id}" in tab.text("#steps")
    shown = "['refused', 'verified'].map((id) => document.getElementById(id).clientHeight > 0)"
    assert tab.value(shown) == [True, False]
    tab.give_files(site.report.folder.parent / "key.pem.pub")
    tab.wait("document.getElementById('verification').dataset.state === 'ok'")
    assert tab.value(shown) == [False, True]

    changed = tmp_path / "changed.fedlatent"
    changed.write_bytes(changed_byte(site))
    tab.give_files(changed)
    tab.wait("document.getElementById('verification').dataset.state === 'bad'")
    assert "scorer.onnx" in tab.text("#refusal-reason")
    assert tab.value("fedlatent.state.model === null")


def test_the_live_stream_plays_pauses_and_takes_a_csv(tab: Tab, site: Site, tmp_path: Path) -> None:
    """Records arrive with scores and times; a person's own CSV is scored in the same way."""
    tab.wait("document.getElementById('progress').textContent.startsWith('record 2 of 100')")
    tab.click("#play")
    assert tab.text("#play") == "Play"
    tab.value("fedlatent.streamView.advance(100)")
    table = EdgeModel.load(site.beats, [site.key.public]).score(site.records)
    assert tab.text("#now-flagged") == f"{table.flag.sum()} of 100"
    assert tab.text("#now-p50").endswith(" ms")
    inked = (
        "['trace', 'chart', 'overview'].map((id) => { const c = document.getElementById(id);"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)})"
    )
    assert tab.value(inked) == [True, True, True]

    own = tmp_path / "own.csv"
    np.savetxt(own, site.records[:7], delimiter=",", fmt="%d", header=HEADER, comments="")
    tab.give_files(own)
    tab.wait("document.getElementById('stream').value === 'own.csv'")
    tab.wait("document.getElementById('progress').textContent.endsWith('of 7')")
    tab.value("fedlatent.streamView.advance(7)")
    assert tab.text("#now-flagged") == f"{table.flag[:7].sum()} of 7"
    own.write_text("1,2,3\n")
    tab.give_files(own)
    tab.wait("document.getElementById('message').textContent.includes('Expected 128 cells')")


def test_a_picture_is_encoded_moved_drawn_and_put_back(browser: Browser, site: Site) -> None:
    """Sliders change the reconstruction, reset restores it, and a drawing is encoded."""
    address = {"bundle": "digits.fedlatent", "view": "latent"}
    picture = "document.getElementById('{}').toDataURL()"
    with PageServer(site.report.folder) as server, browser.open(server.address(**address)) as tab:
        assert tab.verdict() == "ok"
        tab.wait(f"document.querySelectorAll('#sliders input').length === {LATENT}")
        tab.wait("document.getElementById('output').width === 28")
        before = tab.value(picture.format("output"))
        tab.value(
            "(() => { const s = document.querySelector('#sliders input'); s.value = s.max;"
            "s.dispatchEvent(new Event('input')); })()"
        )
        tab.wait(f"{picture.format('output')} !== {json.dumps(before)}")
        tab.click("#reset-latents")
        tab.wait(f"{picture.format('output')} === {json.dumps(before)}")

        tab.click("#clear-drawing")
        tab.wait("document.getElementById('record-number').textContent === 'your drawing'")
        blank = tab.value(picture.format("input"))
        x, y = tab.value(
            "(() => { const b = document.getElementById('input').getBoundingClientRect();"
            "return [b.x, b.y]; })()"
        )
        tab.drag([(x + 60, y + 60), (x + 120, y + 120), (x + 180, y + 60)])
        tab.wait(f"{picture.format('input')} !== {json.dumps(blank)}")


def test_the_facts_are_shown_and_every_view_fits_a_phone(tab: Tab, site: Site) -> None:
    """Epsilon, delta, key and digests can be read, and nothing scrolls sideways at 390 px."""
    tab.resize(390, 844)
    digest = parse_bundle(site.beats.read_bytes(), [site.key.public]).digest
    for view in ("about", "latent", "stream"):
        tab.click(f"#tab-{view}")
        assert tab.value("document.documentElement.scrollWidth") <= 390
    facts = tab.text("#view-about")
    for expected in ("Epsilon3.5", "Delta1.00e-5", site.key.key_id, digest, "Model card"):
        assert expected in facts
    assert "Keep this page within that site" in tab.text("#site-note")


# The modules under Node, beside numpy and the device's own code.

numbers = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 1e-300, 1e308, -1e308, 0.1, 1 / 3])
)
schemas = st.builds(
    Schema,
    name=st.just("s"),
    shape=st.tuples(st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 129, 300, 1000]))),
    unit=st.just(""),
    scale=st.sampled_from([1.0, 1e-3, -0.37, 1e3, 1 / 255]),
    center=st.sampled_from(["none", "median", "mean"]),
    lower=st.sampled_from([-2.5, -1e6, 0.0]),
    upper=st.sampled_from([2.5, 1e6, 0.1]),
)


@CHEAP
@given(schema=schemas, seed=st.integers(0, 2**32 - 1), head=st.lists(numbers, max_size=8))
def test_preprocessing_equals_numpy_bit_for_bit(
    node: Node, schema: Schema, seed: int, head: list[float]
) -> None:
    """Median, mean, scaling, clipping and rounding give the very float32 of training."""
    rows = np.random.default_rng(seed).lognormal(0, 3, (2, schema.size)) * [[1], [-1]]
    rows[0, : len(head)] = head[: schema.size]
    call = {"schema": schema.to_dict(), "rows": rows.tolist()}
    try:
        expected = schema.preprocess(rows)
    except DataError:
        with pytest.raises(ValueError, match="Refusal: Expected finite values"):
            node.call("preprocess", **call)
        return
    actual = np.array(node.call("preprocess", **call), dtype=np.float32)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_record_with_a_hole_is_refused(node: Node, value: str) -> None:
    """NaN and infinity never reach the scorer."""
    with pytest.raises(ValueError, match="Refusal: Expected finite values"):
        node.call("preprocess", schema=tiny.SCHEMA.to_dict(), rows=[[1, 2, value, 4, 5, 6]])


@CHEAP
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    kind=st.sampled_from(["<f2", "<f4", "<f8"]),
    fortran=st.booleans(),
    seed=st.integers(0, 99),
)
def test_arrays_are_read_as_numpy_wrote_them(
    node: Node, shape: list[int], kind: str, fortran: bool, seed: int
) -> None:
    """Every float type, order and shape of an npz comes out with equal values."""
    array = np.random.default_rng(seed).normal(size=shape).astype(kind)
    array = np.asfortranarray(array) if fortran else array
    ((name, read, data),) = node.call("npz", data=text64(pack_arrays({"a": array})))
    assert (name, tuple(read)) == ("a", array.shape)
    values = np.frombuffer(base64.b64decode(data)).reshape(array.shape)
    np.testing.assert_array_equal(values, array.astype(np.float64))


@pytest.mark.parametrize(
    "array", [np.array([1, 2]), np.array([np.nan]), np.array([{}], dtype=object), np.array(["a"])]
)
def test_arrays_of_other_kinds_are_refused(node: Node, tmp_path: Path, array: np.ndarray) -> None:
    """Integers, NaN, text and above all pickles are no golden vectors."""
    np.savez(tmp_path / "a.npz", a=array, allow_pickle=True)
    with pytest.raises(ValueError, match="Refusal: Expected finite float arrays"):
        node.call("npz", data=text64((tmp_path / "a.npz").read_bytes()))


@CHEAP
@given(contents=st.dictionaries(st.sampled_from([*tiny.files(tiny.manifest())]), st.binary()))
def test_archives_have_the_same_canonical_bytes(node: Node, contents: dict[str, bytes]) -> None:
    """The page packs as the exporter packs, and reads it back."""
    expected = pack(contents)
    entries = list(contents_of(expected).items())
    listed = [[name, text64(data)] for name, data in entries]
    assert node.call("pack", entries=listed) == text64(expected)
    assert node.call("unpack", data=text64(expected)) == listed


@CHEAP
@given(data=st.data())
def test_a_flipped_or_missing_byte_is_refused_as_by_the_device(
    node: Node, tiny_bundle: bytes, tiny_key: SigningKey, data: st.DataObject
) -> None:
    """No change anywhere in the file passes, in JavaScript or in Python."""
    at = data.draw(st.integers(0, len(tiny_bundle) - 1))
    changed = bytearray(tiny_bundle)
    changed[at] ^= data.draw(st.integers(1, 255))
    broken = data.draw(st.sampled_from([bytes(changed), tiny_bundle[:at]]))
    with pytest.raises(BundleError):
        parse_bundle(broken, [tiny_key.public])
    with pytest.raises(ValueError, match="Refusal: Expected"):
        node.call("open", data=text64(broken), keys=[tiny_key.public.to_pem().decode()])


def test_a_whole_bundle_opens_alike(node: Node, tiny_bundle: bytes, tiny_key: SigningKey) -> None:
    """Name, key id and digest agree with the device's."""
    opened = node.call("open", data=text64(tiny_bundle), keys=[tiny_key.public.to_pem().decode()])
    device = parse_bundle(tiny_bundle, [tiny_key.public])
    assert opened["name"] == device.manifest.name
    assert (opened["key"], opened["digest"]) == (device.key_id, device.digest)
    assert opened["steps"] == ["Archive", "Signature", "Manifest", "Digests"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version":3', '"version":3,"later":1'),
        ('"version":3', '"version":3,"version":4'),
        ('"version":3', '"version":"3"'),
        ('"format_version":2', '"format_version":3'),
        ('"lower":-2.5', '"lower":2.5'),
        ('"tolerance":0.0001', '"tolerance":1'),
        ('"quantile":0.99', '"quantile":NaN'),
        ('"kind":"global"', '"kind":"site","x":{}'),
        ('"name":"tiny-hearts"', '"name":"tiny hearts"'),
        ('"created":"2026-01-31T', '"created":"2026-02-31T'),
    ],
)
def test_a_signed_manifest_is_still_read_strictly(
    node: Node, tiny_bundle: bytes, tiny_key: SigningKey, old: str, new: str
) -> None:
    """Unknown, repeated or senseless keys are refused by both, even under a good signature."""
    contents = contents_of(tiny_bundle)
    text = contents[MANIFEST].decode()
    assert old in text
    broken = signed(contents, text.replace(old, new).encode(), tiny_key)
    with pytest.raises(BundleError):
        parse_bundle(broken, [tiny_key.public])
    with pytest.raises(ValueError, match=r"Refusal: Expected .*manifest.json|Refusal: Expected b"):
        node.call("open", data=text64(broken), keys=[tiny_key.public.to_pem().decode()])


HEADER = ",".join(f"v{number}" for number in range(128))
THREE = Schema(name="three", shape=(3,)).to_dict()


@pytest.mark.parametrize("case", [name for name, one in CASES.items() if one.page])
def test_csv_is_read_or_refused_as_everywhere(node: Node, tmp_path: Path, case: str) -> None:
    """The same records or reason as elsewhere; a dialect, which nobody can say, is refused."""
    chosen = CASES[case]
    source = chosen.write(tmp_path).read_bytes().decode(errors="replace")
    schema, said = chosen.schema.to_dict(), {"delimiter", "encoding", "header"} & {*chosen.said}
    if chosen.records is not None and not said:
        found = np.array(node.call("csv", source=source, schema=schema), np.float64)
        np.testing.assert_array_equal(found, np.reshape(chosen.records, (len(found), -1)))
        return
    with pytest.raises(CallFailed, match="Refusal: Expected") as caught:
        node.call("csv", source=source, schema=schema)
    assert said or caught.value.reason == chosen.reason
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("source", ["", "a,b,c\n"])
def test_the_page_needs_records(node: Node, source: str) -> None:
    """A table of no records is refused, since the page has nothing to show then."""
    with pytest.raises(CallFailed) as caught:
        node.call("csv", source=source, schema=THREE)
    assert caught.value.reason == "empty"


ROWS = Schema(
    name="rows",
    columns=(
        Column(name="age", lower=20.0, upper=90.0),
        Column(name="pain", levels=("none", "mild", 3.0), missing="mask"),
        Column(name="bytes", upper=1e6, transform="log", missing="value", fill=10.0),
        Column(name="pulse", lower=40.0, upper=200.0, missing="mask"),
    ),
)
CELLS = {
    "age": ["30", "19", "91.5", "44", "50"],
    "pain": ["none", "3.0", "", "worse", "mild"],
    "bytes": ["12", "NA", "1e9", "0", "5"],
    "pulse": ["60", "?", "1e3", "72", ""],
}


def csv_of(cells: Mapping[str, list[str]]) -> str:
    """A table with a header."""
    lines = [",".join(row) for row in zip(*cells.values(), strict=True)]
    return "\n".join([",".join(cells), *lines])


def test_columns_are_found_by_name_and_coded_as_in_python(node: Node) -> None:
    """Another order, a further column, gaps and values out of bounds give the same records."""
    raw = np.stack([one.codes(CELLS[one.name]) for one in ROWS.columns], axis=1)
    cells = {"note": ["x"] * 5, **dict(reversed(CELLS.items()))}
    schema = ROWS.to_dict()
    found = node.call("csv", source=csv_of(cells), schema=schema)
    np.testing.assert_array_equal(np.array(found, dtype=np.float64), raw)
    rows = [["nan" if value is None else value for value in row] for row in found]
    seen = np.array(node.call("preprocess", schema=schema, rows=rows), np.float32)
    np.testing.assert_allclose(seen, ROWS.preprocess(raw), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"age": ["old"] * 5}, "number"),
        ({"age": [""] * 5}, "missing"),
        ({"age": ["inf"] * 5}, "finite"),
        ({"Age": CELLS["age"]}, "column"),
    ],
)
def test_cells_that_a_column_does_not_take_are_refused(
    node: Node, change: dict[str, list[str]], reason: str
) -> None:
    """Text, gaps where none may be, and absent columns are refused without a value."""
    cells = {name: values for name, values in CELLS.items() if name.lower() not in {"age"}}
    with pytest.raises(CallFailed, match="age") as caught:
        node.call("csv", source=csv_of(cells | change), schema=ROWS.to_dict())
    assert caught.value.reason == reason


def test_the_page_cuts_series_as_everywhere(node: Node) -> None:
    """Windows never reach over a hole in time or into another series."""
    window = Window(length=3, step=2, time="at", group="host", rate=1 / 60, gap=1.5)
    schema = Schema(name="load", columns=(ROWS.columns[0], ROWS.columns[3]), window=window)
    rng = np.random.default_rng(0)
    minutes = np.cumsum(rng.choice([1, 1, 1, 2], 40))
    cells = {
        "at": [f"2026-01-31 {10 + m // 60:02d}:{m % 60:02d}:00" for m in minutes.tolist()],
        "host": ["a"] * 25 + ["b"] * 15,
        "pulse": ["" if value < 60 else str(value) for value in rng.integers(40, 200, 40)],
        "age": [str(value) for value in rng.integers(20, 90, 40)],
    }
    rows = np.stack([one.codes(cells[one.name]) for one in schema.columns], axis=1)
    times = np.array([seconds_of(cell) for cell in cells["at"]])
    expected, _ = cut(rows, window, times, cells["host"])
    found = node.call("csv", source=csv_of(cells), schema=schema.to_dict())
    np.testing.assert_array_equal(
        np.array(found, dtype=np.float64), expected.reshape(len(expected), -1)
    )


# The build.


def test_a_page_holds_only_what_it_needs(site: Site) -> None:
    """Own modules, three pinned files with their licence, bundles, keys and streams."""
    files = site.report.files
    vendor = {name for name in files if name.startswith("vendor/")}
    assert vendor == {
        f"vendor/{n}" for n in ("LICENSE.txt", "ort.js", "ort-wasm.js", "ort-wasm.wasm")
    }
    index = json.loads((site.report.folder / "page.json").read_text())
    assert [key["id"] for key in index["keys"]] == [site.key.key_id]
    assert index["streams"][0]["dtype"] == "float32"
    assert site.report.streams == {"real beats": RECORDS}
    assert site.report.sites == ("beats.fedlatent", "digits.fedlatent")
    assert site.report.size == sum(
        path.stat().st_size for path in site.report.folder.rglob("*") if path.is_file()
    )
    html = (site.report.folder / "index.html").read_text()
    assert "default-src 'self'" in html
    assert "http" not in html.replace("http-equiv", "")


def test_a_page_that_would_give_too_much_away_is_not_built(site: Site, tmp_path: Path) -> None:
    """A site's decoder needs consent, an untrusted bundle or a used folder is refused."""
    target = tmp_path / "page"
    with pytest.raises(ConfigError, match="may leave their site"):
        build_page(target, [site.beats], [site.key.public])
    with pytest.raises(BundleError, match="unknown key"):
        build_page(target, [site.beats], [site.stranger.public], within_site=True)
    with pytest.raises(ConfigError, match="at least one bundle"):
        build_page(target, [], [site.key.public])
    with pytest.raises(ConfigError, match="no folder or an empty one"):
        build_page(site.report.folder, [site.beats], [site.key.public], within_site=True)
    assert not target.exists()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [(np.zeros((3, 5)), "as the bundles take, got 5"), (np.array([[np.nan] * 128]), "finite")],
)
def test_a_stream_that_fits_no_bundle_is_refused(
    site: Site, tmp_path: Path, rows: np.ndarray, sentence: str
) -> None:
    """Before anything is written, the sentence says what the bundles take."""
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(DataError, match=sentence):
        build_page(
            tmp_path / "page",
            [site.beats],
            [site.key.public],
            {"rows": tmp_path / "rows.npy"},
            within_site=True,
        )
    assert not (tmp_path / "page").exists()


def test_streams_come_from_every_kind_of_file(tmp_path: Path) -> None:
    """CSV with a header, npy and npz hold the same records, and only the first are kept."""
    rows = np.arange(12.0).reshape(4, 3) / 3
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="a,b,c", comments="", fmt="%.17g")
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", X=rows)
    for suffix in ("csv", "npy", "npz"):
        read = build.read_stream("a", tmp_path / f"a.{suffix}", {3}, 2)
        np.testing.assert_array_equal(read, rows[:2])


def test_another_package_is_refused(site: Site, tmp_path: Path) -> None:
    """A changed tarball or file is named, and no page is left."""
    (tmp_path / "other.tgz").write_bytes(b"other")
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    (folder / "dist" / "ort.wasm.min.mjs").write_text("export default 1;")
    for package in (tmp_path / "other.tgz", folder):
        with pytest.raises(ServiceError, match="with its pinned digests"):
            build_page(
                tmp_path / "page",
                [site.beats],
                [site.key.public],
                package=package,
                within_site=True,
            )
    assert not (tmp_path / "page").exists()


def test_no_npm_and_no_network_are_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a kept package, an absent npm and one that fails have a sentence each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match="got none on this machine; install it"):
        fetch_package()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(ServiceError, match="go online once"):
        fetch_package()
