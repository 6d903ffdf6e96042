import io
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from fedlatent.shared.bundle.archive import DENSITY, GOLDEN, SCORER
from fedlatent.shared.bundle.arrays import pack_arrays, unpack_arrays
from fedlatent.shared.bundle.graphs import CHUNK, Graphs, check_golden, make_golden
from fedlatent.shared.bundle.manifest import Runtime, ScoreDefinition
from fedlatent.shared.errors import BundleError, DataError
from tests.shared.bundle import tiny


def _open(changes: Mapping[str, bytes] | None = None) -> Graphs:
    manifest = tiny.manifest()
    return Graphs.open(manifest, {**tiny.files(manifest), **(changes or {})})


def test_scorer_matches_numpy() -> None:
    """The graph gives the reference's latents and distances, for no record up to many chunks."""
    graphs = _open()
    for count in (0, 1, CHUNK, 2 * CHUNK + 3):
        raw = tiny.raw_records(count)
        expected = tiny.latents(raw)
        scored = graphs.score(raw)
        distance = ((expected - tiny.CENTER) ** 2).sum(axis=1)
        np.testing.assert_allclose(scored["mu"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scored["logvar"], -expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scored["score"], distance, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scored["recentred_distance"], 4 * distance, rtol=1e-5, atol=1e-6)


def test_center_is_an_argument() -> None:
    """Distances are taken from the center that is passed."""
    raw = tiny.raw_records(1)
    center = tiny.latents(raw)[0]
    assert _open().score(raw, center)["latent_distance"] == pytest.approx([0.0], abs=1e-10)


def test_golden_vectors_agree_with_themselves() -> None:
    """A machine that made golden vectors passes them."""
    files = tiny.files(tiny.manifest())
    assert check_golden(_open(), files[GOLDEN]) <= 1e-6


def test_golden_vectors_catch_another_graph() -> None:
    """A graph that computes something else by one part in a thousand fails the golden check."""
    files = tiny.files(tiny.manifest())
    arrays = unpack_arrays(files[GOLDEN], GOLDEN)
    for name in set(arrays) - {"records"}:
        changed = {**arrays, name: arrays[name] * 1.001 + 0.001}
        with pytest.raises(BundleError, match="golden outputs within"):
            check_golden(_open(), pack_arrays(changed))


def test_golden_vectors_must_be_complete() -> None:
    """Missing, additional or empty golden arrays are refused."""
    arrays = unpack_arrays(tiny.files(tiny.manifest())[GOLDEN], GOLDEN)
    empty = {name: array[:0] for name, array in arrays.items()}
    less = {name: array for name, array in arrays.items() if name != "scorer_score"}
    for bad in (empty, less, {**arrays, "more": np.zeros(5)}, {}):
        with pytest.raises(BundleError, match=GOLDEN):
            check_golden(_open(), pack_arrays(bad))


def test_golden_records_must_fit_the_schema() -> None:
    """Golden vectors cannot be made from records of another shape."""
    manifest = tiny.manifest()
    with pytest.raises(DataError, match="shape"):
        make_golden(manifest, tiny.files(manifest), np.zeros((2, 5)))


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        (SCORER, b"not a graph", "loads in scorer.onnx"),
        (SCORER, b"", "loads in scorer.onnx"),
        (SCORER, tiny.other_graph(), "take x and center"),
        (SCORER, tiny.scorer(site=True), "Expected the outputs"),
        (DENSITY, pack_arrays({"mean": np.zeros(2)}), "count, mean, covariance"),
        (DENSITY, b"not an npz", "npz of finite float arrays"),
    ],
)
def test_unfit_files_are_refused(name: str, data: bytes, match: str) -> None:
    """A graph or density that does not fit the manifest is refused by name."""
    with pytest.raises(BundleError, match=match):
        _open({name: data})


def test_older_onnx_runtime_is_refused() -> None:
    """A bundle that asks for a newer ONNX Runtime than this one is refused, in words."""
    manifest = replace(tiny.manifest(), runtime=Runtime(min_onnxruntime="99.1"))
    with pytest.raises(BundleError, match=r"ONNX Runtime 99\.1 or newer"):
        Graphs.open(manifest, tiny.files(tiny.manifest()))


def test_golden_tolerance_is_the_manifests() -> None:
    """A bundle of coarse arithmetic says how far another machine may differ."""
    files = tiny.files(tiny.manifest())
    arrays = unpack_arrays(files[GOLDEN], GOLDEN)
    arrays["scorer_score"] = arrays["scorer_score"] * 1.01
    manifest = replace(tiny.manifest(), runtime=Runtime(tolerance=0.02))
    error = check_golden(Graphs.open(manifest, files), pack_arrays(arrays))
    assert 1e-4 < error <= 0.02


def test_latent_dim_must_fit() -> None:
    """A density of another dimension than the manifest's is refused."""
    manifest = tiny.manifest()
    with pytest.raises(BundleError, match="3 latent dimensions"):
        Graphs.open(replace(manifest, latent_dim=3), tiny.files(manifest))


def test_schema_must_fit_the_graph() -> None:
    """Records of another width than the graph's give a BundleError, not one of ONNX Runtime."""
    manifest = replace(tiny.manifest(), schema=replace(tiny.SCHEMA, shape=(7,)))
    graphs = Graphs.open(manifest, tiny.files(tiny.manifest()))
    with pytest.raises(BundleError, match="run on x"):
        graphs.score(np.zeros((1, 7)))


def test_scores_that_are_not_finite_are_refused() -> None:
    """An infinite score is an error: it would compare silently otherwise."""
    graphs = _open({SCORER: tiny.scorer(overflow=True)})
    with pytest.raises(BundleError, match="one finite score"):
        graphs.score(tiny.raw_records(2))


def test_graphs_cannot_read_other_files() -> None:
    """A graph whose weights lie in another file is refused, whatever the path."""
    model = onnx.load_from_string(tiny.scorer())
    weights = next(item for item in model.graph.initializer if item.name == "W")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/hostname")
    with pytest.raises(BundleError, match=r"loads in scorer\.onnx"):
        _open({SCORER: model.SerializeToString()})


def test_damaged_graphs_are_refused_or_computed_never_worse(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Graphs with random damage, as a publisher's mistake may sign them, end in no other error."""
    files, graph = tiny.files(tiny.manifest()), tiny.scorer()
    generator, refused = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(graph)
        for _ in range(generator.choice([1, 4, 16])):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        try:
            check_golden(_open({SCORER: bytes(damaged)}), files[GOLDEN])
        except BundleError:
            refused += 1
    assert refused > 200
    assert capfd.readouterr().out == ""


def test_manifest_outputs_must_be_the_graphs() -> None:
    """A manifest that names fewer outputs than the scorer has is refused."""
    score = ScoreDefinition(outputs=("recentred_distance", "score"))
    with pytest.raises(BundleError, match="Expected the outputs"):
        Graphs.open(replace(tiny.manifest(), score=score), tiny.files(tiny.manifest()))


def test_arrays_round_trip_in_one_byte_form() -> None:
    """Arrays come back as they went in, and their order does not change the bytes."""
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.zeros((0, 2), dtype=np.float32)}
    data = pack_arrays(arrays)
    assert data == pack_arrays(dict(reversed(arrays.items())))
    back = unpack_arrays(data, "test")
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def _compressed() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(1_000_000))
    return buffer.getvalue()


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        _compressed(),
        _pickled(),
        pack_arrays({"a": np.array([np.nan])}),
        pack_arrays({"a": np.array([1])}),
        pack_arrays({"a": np.zeros(3)})[:-10],
        pack_arrays({f"a{i}": np.zeros(1) for i in range(65)}),
    ],
    ids=["empty", "text", "compressed", "pickle", "nan", "integer", "cut", "many"],
)
def test_irregular_arrays_are_refused(data: bytes) -> None:
    """Compressed, pickled, non-finite, non-float or damaged arrays are a BundleError."""
    with pytest.raises(BundleError, match="finite float arrays in test"):
        unpack_arrays(data, "test")
