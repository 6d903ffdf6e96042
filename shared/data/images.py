"""Read a folder of images, one record each, by Pillow, which is imported only here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.asked import Asked, Found, check_keys, hidden, needed
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

if TYPE_CHECKING:
    from PIL import Image

#: Endings of the files that are taken; all others in the folder are passed over.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def find_in_folder(path: Path, asked: Asked) -> Found:
    """All images below a folder, and of each what it is asked for by where the image lies.

    The names are ``file`` (of the image, below the folder), ``folder`` (the one that it lies in)
    and ``folder1``, ``folder2``, ... from the outermost on.
    """
    if asked.columns is not None:
        raise DataError(
            f"Expected no columns for the folder of images {path.name}, got "
            f"{len(asked.columns)}; give a schema with one range for all values.",
            reason="column",
        )
    files = image_files(path)
    sides = _sides(path, files)
    check_keys(path.name, "one of the names", asked.others, [*sides])
    return Found(load_images(path, files), [sides[key] for key in asked.others])


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, by their names.

    Raises:
        DataError: there is none.
    """
    files = sorted(
        one
        for one in folder.rglob("*")
        if ending_of(one, IMAGES) and one.is_file() and not hidden(one.relative_to(folder))
    )
    if not files:
        raise DataError(
            f"Expected images ({', '.join(IMAGES)}) in the folder {folder}, got none; check the "
            "path."
        )
    return files


def load_images(folder: Path, files: Sequence[Path]) -> NDArray[Any]:
    """Images as they are stored: grey [N, height, width], or colour [N, 3, height, width].

    Raises:
        DataError: one cannot be read, or differs from the first in size, colour or depth.
    """
    found: list[NDArray[Any]] = []
    for name, pixels in _read(folder, files):
        if found and (pixels.shape, pixels.dtype) != (found[0].shape, found[0].dtype):
            raise DataError(
                f"Expected images like the first, {files[0].relative_to(folder)} of "
                f"{_told(found[0])}, got {name} of {_told(pixels)}; scale and convert them to one "
                "size and colour first.",
                field=name,
                reason="shape",
            )
        found.append(pixels)
    return np.stack(found)


def _read(folder: Path, files: Sequence[Path]) -> Iterator[tuple[str, NDArray[Any]]]:
    with needed("images", "a folder of images"):
        from PIL import Image, ImageOps

    for file in files:
        name = str(file.relative_to(folder))
        try:
            with Image.open(file) as image:
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    raise DataError(
                        f"Expected one image in {name}, got {frames}; write each to a "
                        "file of its own.",
                        field=name,
                        reason="shape",
                    )
                yield name, _pixels(ImageOps.exif_transpose(image), name)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"Expected a readable image in {name}, got a {type(error).__name__}; write it "
                "again or take it out of the folder.",
                field=name,
                reason="image",
            ) from error


def _pixels(image: "Image.Image", name: str) -> NDArray[Any]:
    """Grey [height, width] or colour [3, height, width]; transparency must be none."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode not in ("LA",) else "LA")
        if np.asarray(image)[..., -1].min() < 255:
            raise DataError(
                f"Expected an image without transparency in {name}, got one; flatten it.",
                field=name,
                reason="image",
            )
        image = image.convert(image.mode[:-1])
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels


def _told(pixels: NDArray[Any]) -> str:
    height, width = pixels.shape[-2:]
    colour = "colour" if pixels.ndim == 3 else "grey"
    return f"{width} x {height} pixels, {colour}, {8 * pixels.dtype.itemsize} bit"


def _sides(folder: Path, files: Sequence[Path]) -> dict[str, NDArray[Any]]:
    """What is known of each image by its place; levels of folders that all of them have."""
    parts = [file.relative_to(folder).parts for file in files]
    levels = min(map(len, parts)) - 1
    named = {"file": ["/".join(one) for one in parts]}
    if levels:
        named["folder"] = [one[-2] for one in parts]
    named |= {f"folder{at + 1}": [one[at] for one in parts] for at in range(levels)}
    return {key: np.array(values, dtype=object) for key, values in named.items()}
