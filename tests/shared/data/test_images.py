"""A folder of images is read as records, one each."""

from pathlib import Path

import pytest
from PIL import Image

from fedlatent.shared.data.describe import describe
from fedlatent.shared.data.readers import read, read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError


def grey(value: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    """One image of a single shade, with a corner of another."""
    image = Image.new("L", size, value)
    image.putpixel((0, 0), 255)
    return image


def folder(root: Path) -> Path:
    """Two writers with good and bad images of 6 x 4 pixels, and files that are no images."""
    for at, name in enumerate(("b/bad/2.png", "a/good/1.png", "b/good/10.png", "a/good/0.png")):
        file = root / "shots" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        grey(10 * at).save(file)
    (root / "shots" / "readme.txt").write_text("no image")
    (root / "shots" / "a" / "._0.png").write_bytes(b"what another system leaves")
    return root / "shots"


def test_images_are_records_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Pixels come as stored; labels and clients by the folders that an image lies in."""
    raw = read_raw(folder(tmp_path), label_key="folder", normal_label="good", client_key="folder1")
    assert raw.records.shape == (4, 4, 6)
    assert raw.records[:, 1, 1].tolist() == [30, 10, 0, 20]
    assert raw.records[:, 0, 0].tolist() == [255] * 4
    assert raw.label is not None
    assert raw.label.tolist() == [0, 0, 1, 0]
    assert raw.client_id is not None
    assert raw.client_id.tolist() == ["a", "a", "b", "b"]
    named = read_raw(tmp_path / "shots", client_key="file").client_id
    assert named is not None
    assert named.tolist()[0] == "a/good/0.png"


def test_a_proposed_schema_has_the_range_of_the_type(tmp_path: Path) -> None:
    """Bounds of stored bytes tell nothing of the images, and records lie in 0 to 1."""
    place = folder(tmp_path)
    schema = Schema.from_dict(Schema(name="x", shape=(1,)).to_dict() | describe(place).data)
    assert schema.shape == (1, 4, 6)
    records = read(place, schema).records
    assert records.shape == (4, 1, 4, 6)
    assert records.max() == 1.0
    assert records.min() == 0.0


def test_colour_comes_with_its_channels_first(tmp_path: Path) -> None:
    """Palettes and opaque alpha become plain colour; all have to be alike."""
    place = tmp_path / "colour"
    place.mkdir()
    image = Image.new("RGB", (5, 3), (1, 2, 3))
    image.save(place / "0.png")
    image.convert("RGBA").save(place / "1.png")
    image.quantize(4).save(place / "2.png")
    records = read_raw(place).records
    assert records.shape == (3, 3, 3, 5)
    assert records[:, :, 0, 0].tolist() == [[1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: grey(1, (7, 4)).save(place / "z.png"), "z.png of 7 x 4 pixels, grey, 8 bit"),
        (
            lambda place: Image.new("RGB", (6, 4)).save(place / "z.png"),
            "z.png of 6 x 4 pixels, col",
        ),
        (lambda place: (place / "z.png").write_bytes(b"\x89PNG torn"), "readable image in z.png"),
        (
            lambda place: Image.new("RGBA", (6, 4), (0, 0, 0, 9)).save(place / "z.png"),
            "without transparency in z.png",
        ),
        (
            lambda place: grey(1).save(
                place / "z.tif", save_all=True, append_images=[grey(2), grey(3)]
            ),
            "one image in z.tif, got 3",
        ),
    ],
)
def test_what_is_not_like_the_first_is_named(tmp_path: Path, spoil: object, words: str) -> None:
    """One sentence names the file that cannot be read or is of another size, colour or kind."""
    place = folder(tmp_path)
    assert callable(spoil)
    spoil(place)
    with pytest.raises(DataError, match=words):
        read_raw(place)


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    """A folder without images, a level that not all lie below, and columns are refused."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"Expected images \(\.png"):
        read_raw(tmp_path / "empty")
    place = folder(tmp_path)
    with pytest.raises(DataError, match="'folder3' in shots, got file, folder, folder1, folder2"):
        read_raw(place, label_key="folder3")
    grey(3).save(place / "loose.png")
    with pytest.raises(DataError, match="'folder' in shots, got file"):
        read_raw(place, label_key="folder")
    with pytest.raises(DataError, match="Expected no columns for the folder of images"):
        read_raw(place, columns=["a"])
