import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.shared.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    Combination,
    Manifest,
    Privacy,
    ScoreDefinition,
    Thresholds,
)
from fedlatent.shared.errors import BundleError
from tests.shared.bundle import tiny

FROZEN = Path(__file__).parent / "frozen_manifest.json"

PRIVACY = Privacy(
    epsilon=7.5,
    delta=1e-5,
    noise_multiplier=1.1,
    sample_rate=0.05,
    steps=8000,
    rng="secure",
    adjacency="zero-out",
    unit="record",
)
COMBINE = Combination(
    names=("latent_distance", "reconstruction_error"),
    mean=(2.0, 30.0),
    scale=(1.5, 9.0),
    weights=(0.5, 0.5),
)


def _full() -> Manifest:
    """A site manifest in which every optional part is present."""
    base = tiny.manifest(kind="site", privacy=PRIVACY)
    return replace(base, score=ScoreDefinition(outputs=tiny.SITE_OUTPUTS, combine=COMBINE))


def _edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(_full().to_bytes())
    edit(value)
    return json.dumps(value).encode()


def test_round_trip() -> None:
    """Parsing what was written gives an equal manifest, with and without the optional parts."""
    for manifest in (_full(), tiny.manifest()):
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_format_is_frozen() -> None:
    """The JSON of a full manifest equals the frozen file; a change of it is a format change."""
    assert json.loads(_full().to_bytes()) == json.loads(FROZEN.read_text())


def test_older_and_newer_formats_are_named() -> None:
    """Another format version is refused by number, before its other keys are judged."""
    data = _edited(lambda value: value.update(format_version=1, novelty=1))
    with pytest.raises(BundleError, match="format version 2, got 1"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("score",),
        ("score", "combine"),
        ("thresholds",),
        ("privacy",),
        ("training",),
        ("runtime",),
    ],
    ids=lambda path: ".".join(path) or "top",
)
def test_unknown_and_missing_keys_are_refused(path: tuple[str, ...]) -> None:
    """At every level an unknown key is refused by name, and each missing key too."""

    def at(value: dict[str, Any]) -> dict[str, Any]:
        for name in path:
            value = value[name]
        return value

    with pytest.raises(BundleError, match="surprise"):
        Manifest.from_bytes(_edited(lambda value: at(value).update(surprise=1)))
    for name in at(json.loads(_full().to_bytes())):
        with pytest.raises(BundleError, match=name):
            Manifest.from_bytes(_edited(lambda value, name=name: at(value).pop(name)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "local"),
        (("name",), "../evil"),
        (("name",), ""),
        (("name",), "a\nb"),
        (("version",), 0),
        (("version",), True),
        (("version",), 1.0),
        (("version",), 2**60),
        (("created",), "2026-13-31T12:00:00Z"),
        (("created",), "yesterday"),
        (("latent_dim",), 100_000),
        (("schema", "scale"), 0),
        (("schema", "shape"), [0]),
        (("score", "outputs"), ["score", "score"]),
        (("score", "outputs"), ["latent_distance"]),
        (("score", "combine", "scale"), [0.0, 1.0]),
        (("score", "combine", "mean"), [1.0]),
        (("score", "combine", "names"), ["nothing", "latent_distance"]),
        (("thresholds", "quantile"), 1.0),
        (("thresholds", "absolute"), "high"),
        (("privacy", "epsilon"), -1),
        (("privacy", "delta"), 0),
        (("privacy", "noise_multiplier"), 0),
        (("privacy", "sample_rate"), 1.5),
        (("privacy", "rng"), "dice"),
        (("training", "rounds"), -1),
        (("training", "sharing"), "everything"),
        (("runtime", "format"), "tflite"),
        (("runtime", "precision"), "int4"),
        (("runtime", "min_onnxruntime"), "new"),
        (("runtime", "tolerance"), 0),
        (("runtime", "tolerance"), 1.0),
        (("runtime", "opset"), "20"),
        (("expires",), "never"),
        (("expires",), "2026-13-31T12:00:00Z"),
        (("metrics",), {"auroc": None}),
        (("metrics",), {"a b": 1.0}),
        (("metrics",), {f"m{i}": 1.0 for i in range(300)}),
        (("files",), {"scorer.onnx": {"sha256": "00", "bytes": 1}}),
        (("files",), {"../x.onnx": {"sha256": "0" * 64, "bytes": 1}}),
    ],
)
def test_wrong_values_are_refused(path: tuple[str, ...], value: object) -> None:
    """A value of the wrong type, range or form is a BundleError."""

    def put(top: dict[str, Any]) -> None:
        for name in path[:-1]:
            top = top[name]
        top[path[-1]] = value

    with pytest.raises(BundleError, match="Expected"):
        Manifest.from_bytes(_edited(put))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 50_000,
        b"[" * 50_000,
        b'{"a":1,"a":1}',
        b"{}" + b" " * MAX_MANIFEST_BYTES,
        b'{"format_version":' + b"9" * 5_000 + b"}",
    ],
    ids=["empty", "list", "null", "not-utf8", "deep", "deep-list", "twice", "long", "huge-int"],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    """Text that is no bounded JSON object is a BundleError, never another exception."""
    with pytest.raises(BundleError, match="Expected"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    """No spelling of NaN or infinity passes as a threshold or a metric."""
    for key in ('"absolute":1.0', '"auroc_seen":0.97'):
        name = key.split(":")[0]
        text = _full().to_bytes().decode().replace(key, f"{name}:{number}")
        assert number in text
        with pytest.raises(BundleError, match="finite"):
            Manifest.from_bytes(text.encode())


def test_manifest_with_nan_is_not_written() -> None:
    """A NaN figure is refused when the manifest is written, too."""
    with pytest.raises(BundleError, match="finite"):
        replace(tiny.manifest(), metrics={"auroc": float("nan")}).to_bytes()


def test_contradictions_are_refused() -> None:
    """A global bundle cannot score by reconstruction, and some threshold must be there."""
    score = ScoreDefinition(outputs=tiny.SITE_OUTPUTS)
    with pytest.raises(BundleError, match="decoders stay"):
        replace(tiny.manifest(), score=score).check()
    released = replace(tiny.manifest().training, sharing="full")
    replace(tiny.manifest(), score=score, training=released).check()
    nothing = Thresholds(quantile=0.99, absolute=None, recentred=None)
    with pytest.raises(BundleError, match="at least one threshold"):
        tiny.manifest(thresholds=nothing).check()
    plain = ScoreDefinition(outputs=("latent_distance", "score"))
    with pytest.raises(BundleError, match="recentred_distance"):
        replace(tiny.manifest(), score=plain).check()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), replacement=_JSON)
def test_any_replaced_value_is_judged(data: st.DataObject, replacement: object) -> None:
    """Whatever stands at any place, the outcome is a manifest or a BundleError."""
    value = json.loads(_full().to_bytes())
    at: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[key], dict | list) and at[key]) or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = replacement
    with contextlib.suppress(BundleError):
        manifest = Manifest.from_bytes(json.dumps(value).encode())
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest
