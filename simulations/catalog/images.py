"""Images: MNIST, Fashion-MNIST, Omniglot, Kodak."""

import gzip
import io
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.simulations.catalog.content import npz

_RAW = "https://raw.githubusercontent.com"
#: Files of the IDX format: images and classes of training and test.
_IDX = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
MNIST = {name: f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}" for name in _IDX}
_ZALANDO = f"{_RAW}/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141"
FASHION = {name: f"{_ZALANDO}/data/fashion/{name}" for name in _IDX}
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
_LAKE = f"{_RAW}/brendenlake/omniglot/057f034baf2ecb8530bc5710e5a23584d2a519cc"
_LETTERS = "images_background_small1"
OMNIGLOT = {f"{_LETTERS}.zip": f"{_LAKE}/python/{_LETTERS}.zip"}
NUMBERS = (1, 2, 3, 5, 7, 8, 11, 13, 15, 20, 21, 23)
_ZELEX = f"{_RAW}/Zelex/images/0b8a89db599a384124fb991b85d40cfd63c73d58"
KODAK = {f"kodim{one:02d}.png": f"{_ZELEX}/kodak/kodim{one:02d}.png" for one in NUMBERS}
_SIDE = 28
_DRAWERS = 20
_CROP = (256, 384)

Bytes = NDArray[np.uint8]


def idx(data: bytes) -> Bytes:
    """The array of a gzipped IDX file of bytes.

    Raises:
        ValueError: It is no such file.
    """
    raw = gzip.decompress(data)
    zeros, kind, axes = struct.unpack(">HBB", raw[:4])
    if zeros != 0 or kind != 8:
        raise ValueError("no IDX file of bytes")
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    return np.frombuffer(raw, np.uint8, math.prod(shape), 4 + 4 * axes).reshape(shape)


def mnist(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The first 20,000 images of training, and the test."""
    images, classes, tested, test_classes = (idx(originals[name]) for name in _IDX)
    return {
        "mnist_train20k.npz": npz({"X": images[:20_000], "y": classes[:20_000]}),
        "mnist_test10k.npz": npz({"X": tested, "y": test_classes}),
    }


def fashion(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The first 6,500 images of training and 1,500 of the test."""
    images, classes, tested, test_classes = (idx(originals[name]) for name in _IDX)
    arrays = {
        "X_train": images[:6500],
        "y_train": classes[:6500],
        "X_test": tested[:1500],
        "y_test": test_classes[:1500],
        "names": np.array(_CLOTHES),
    }
    return {"fashion_mnist_8k.npz": npz(arrays)}


def omniglot(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """Letters as ink of 0 to 255, averaged over boxes of 105 / 28 pixels; a client a drawer."""
    with zipfile.ZipFile(io.BytesIO(originals[f"{_LETTERS}.zip"])) as archive:
        names = sorted(
            name
            for name in archive.namelist()
            if name.startswith(f"{_LETTERS}/") and name.endswith(".png")
        )
        images = np.stack([_ink(archive.read(name)) for name in names])
    parts = [name.removesuffix(".png").split("/")[1:] for name in names]
    alphabets = sorted({alphabet for alphabet, _, _ in parts})
    alphabet = np.array([alphabets.index(one) for one, _, _ in parts], np.uint8)
    drawer = np.array([int(name.split("_")[1]) for _, _, name in parts], np.uint8)
    arrays = {
        "X": images,
        "alphabet": alphabet,
        "character": np.array([int(one[-2:]) for _, one, _ in parts], np.uint8),
        "drawer": drawer,
        "client": alphabet.astype(np.uint16) * _DRAWERS + drawer - 1,
        "alphabet_names": np.array(alphabets),
    }
    return {"omniglot_small1_28.npz": npz(arrays)}


def kodak(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The middle 256 x 384 pixels of each photograph."""
    crops = []
    for one in NUMBERS:
        image = _opened(originals[f"kodim{one:02d}.png"]).convert("RGB")
        pixels = np.asarray(image)
        top, left = ((size - crop) // 2 for size, crop in zip(pixels.shape, _CROP, strict=False))
        crops.append(pixels[top : top + _CROP[0], left : left + _CROP[1]])
    arrays = {"X": np.stack(crops), "number": np.array(NUMBERS, np.uint8)}
    return {"kodak_crops.npz": npz(arrays)}


def _ink(data: bytes) -> Bytes:
    from PIL import Image

    ink = 255 * (np.asarray(_opened(data).convert("L")) < 128)
    small = Image.fromarray(ink.astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def _opened(data: bytes) -> Any:  # noqa: ANN401 - an image of Pillow
    from PIL import Image

    return Image.open(io.BytesIO(data))
