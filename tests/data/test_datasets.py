from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cfaug.data import ArrayDataset, AttributeDataset, FolderDataset, Schema, open_source, pixel_digest
from cfaug.data.sources import can_unconfound
from cfaug.errors import CfaugError, DataError, UsageError

ROWS = [
    ("a.png", "train", "land", "sand", 1.0),
    ("b.png", "train", "water", "sea", 3.0),
    ("c.png", "val", "land", "sea", 100.0),
    ("sub/d.png", "test", "water", "ice", 50.0),
]


def write(root: Path, rows: list[tuple[object, ...]] = ROWS, mode: str = "RGB") -> Path:  # type: ignore[assignment]
    root.mkdir(exist_ok=True)
    for i, (name, *_) in enumerate(rows):
        path = root / str(name)
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (6, 4), i * 20 if mode == "L" else (i * 20, 1, 2)).save(path)
    table = pd.DataFrame(rows, columns=["file_name", "split", "species", "place", "age"])
    table.assign(ignored="x").to_csv(root / "metadata.csv", index=False)
    return root


def open_folder(root: Path, split: str = "train", **more: object) -> FolderDataset:
    options = {"target": "species", "spurious": ["place"], "kinds": {"age": "continuous"}} | more
    return FolderDataset(root, split, **options)  # type: ignore[arg-type]


def refused(kind: type[CfaugError], *words: str, **call: object) -> None:
    root = call.pop("root")
    with pytest.raises(kind) as e:
        open_folder(root, **call)  # type: ignore[arg-type]
    text = str(e.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_a_folder_is_an_attribute_dataset_with_statistics_from_train(tmp_path: Path) -> None:
    train = open_folder(write(tmp_path / "d"))
    assert isinstance(train, AttributeDataset)
    assert len(train) == 2
    assert train.schema["place"].values == ("ice", "sand", "sea")  # categories of every split
    assert train.schema["age"].mean == 2.0  # the val row's 100 is not looked at
    assert (train.schema.target, train.schema.spurious) == ("species", ("place",))
    assert train.schema == open_folder(tmp_path / "d", "test").schema
    assert train.key(1) == "b.png"
    image, target = train[1]
    assert (image.size, image.mode, target) == ((6, 4), "RGB", 1)
    assert train.image(1).shape == (4, 6, 3)
    assert train.image(1).dtype == np.uint8
    assert open_folder(tmp_path / "d", "test").key(0) == "sub/d.png"
    train.check_images()


def test_grey_stays_one_channel_and_a_transform_is_applied(tmp_path: Path) -> None:
    grey = open_folder(write(tmp_path / "d", mode="L"), transform=np.asarray)
    assert grey.image(0).shape == (4, 6, 1)
    assert grey[0][0].shape == (4, 6)


def test_bad_folders_are_one_line_each(tmp_path: Path) -> None:
    refused(UsageError, "nowhere", "does not exist", root=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(UsageError, "metadata.csv", "does not exist", root=tmp_path / "empty")
    good = write(tmp_path / "good")
    refused(UsageError, "'plase'", "place", root=good, spurious=["plase"])
    refused(UsageError, "'colour'", root=good, attributes=["colour"])
    refused(UsageError, "'agee'", "age", root=good, kinds={"agee": "continuous"})
    refused(UsageError, "train, val, test", "'dev'", root=good, split="dev")
    refused(UsageError, "kind must be", root=good, kinds={"age": "number"})
    refused(DataError, "'dev'", "'x.png'", root=write(tmp_path / "1", [*ROWS, ("x.png", "dev", "land", "sea", 1)]))
    refused(DataError, "training split is empty", root=write(tmp_path / "2", ROWS[2:]))
    refused(DataError, "'val'", root=write(tmp_path / "3", ROWS[:2]), split="val")
    refused(DataError, "'a.png'", "twice", root=write(tmp_path / "4", [*ROWS, ROWS[0]]))
    refused(
        DataError, "'old'", "'x.png'", root=write(tmp_path / "5", [*ROWS, ("x.png", "train", "land", "sea", "old")])
    )
    (write(tmp_path / "6") / "b.png").unlink()
    refused(DataError, "b.png", "no such file", root=tmp_path / "6")
    for i, name in enumerate(["../x.png", "/etc/x.png", "sub/../../x.png", "..\\x.png", "C:\\x.png"]):
        root = write(tmp_path / f"e{i}")
        with open(root / "metadata.csv", "a") as f:
            f.write(f"{name},train,land,sea,1,x\n")
        refused(DataError, "leads out of", root=root)
    (write(tmp_path / "7") / "metadata.csv").write_bytes(b"\xff\xfe\x00\x01")
    refused(DataError, "CSV", root=tmp_path / "7")
    (tmp_path / "7" / "metadata.csv").write_text("")
    refused(DataError, "CSV", root=tmp_path / "7")
    (tmp_path / "7" / "metadata.csv").write_text("file,split\na.png,train\n")
    refused(DataError, "'file_name'", root=tmp_path / "7")


@pytest.mark.parametrize("damage", ["truncated", "not an image", "other size", "other mode", "eps", "deep"])
def test_check_images_names_the_first_bad_image(tmp_path: Path, damage: str) -> None:
    root = write(tmp_path / "d")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    if damage == "truncated":
        Image.fromarray(noise).save(root / "b.png")
        whole = (root / "b.png").read_bytes()
        (root / "b.png").write_bytes(whole[: len(whole) // 2])
    elif damage == "not an image":
        (root / "b.png").write_text("hello")
    elif damage == "other size":
        Image.new("RGB", (7, 4)).save(root / "b.png")
    elif damage == "other mode":
        Image.new("L", (6, 4)).save(root / "b.png")
    elif damage == "eps":
        Image.new("RGB", (6, 4)).save(root / "b.png", format="EPS")
    else:
        Image.new("I;16", (6, 4)).save(root / "b.png")
    with pytest.raises(DataError) as e:
        open_folder(root).check_images()
    assert "b.png" in str(e.value)
    assert "\n" not in str(e.value)


def test_array_datasets_check_themselves_and_pickle(tiny_digits: ArrayDataset) -> None:
    again = pickle.loads(pickle.dumps(tiny_digits))
    assert again.table.equals(tiny_digits.table)
    assert isinstance(again, AttributeDataset)
    schema, table = tiny_digits.schema, tiny_digits.table
    with pytest.raises(UsageError, match="one table row per image"):
        ArrayDataset(tiny_digits.images[:3], table, schema)
    with pytest.raises(UsageError, match="uint8"):
        ArrayDataset(tiny_digits.images / 255.0, table, schema)
    with pytest.raises(DataError, match="twice"):
        ArrayDataset(tiny_digits.images[:2], table.iloc[[0, 0]], schema)
    with pytest.raises(UsageError, match="a target whose code"):
        ArrayDataset(tiny_digits.images, table, Schema(schema.attributes))[0]
    with pytest.raises(IndexError):
        tiny_digits[64]
    assert len(list(tiny_digits)) == 64


def test_the_pixel_digest_sees_shape_and_pixels_and_takes_grey_for_rgb() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    rgb = np.repeat(grey, 3, axis=2)
    assert pixel_digest(grey) == pixel_digest(rgb) == pixel_digest(grey[..., 0])
    assert pixel_digest(rgb) != pixel_digest(rgb.reshape(6, 4, 3))
    other = rgb.copy()
    other[3, 5, 2] ^= 1
    assert pixel_digest(rgb) != pixel_digest(other)
    assert pixel_digest(np.asfortranarray(rgb)) == pixel_digest(rgb)
    with pytest.raises(UsageError, match="uint8"):
        pixel_digest(rgb / 255.0)


def test_open_source_knows_names_options_and_what_can_be_unconfounded(tmp_path: Path) -> None:
    assert can_unconfound("digits")
    assert not can_unconfound("folder")
    root = write(tmp_path / "d")
    assert len(open_source("folder", root, "train", target="species", spurious=["place"])) == 2
    for call, word in [
        (lambda: open_source("digit"), "did you mean digits"),
        (lambda: open_source("digits", rhoo=0.5), "did you mean rho"),
        (lambda: open_source("digits", rho=1.5), "from 0 to 1"),
        (lambda: open_source("digits", rho={"fore": 0.5}), "'fore'"),
        (lambda: open_source("digits", spurious=["colour"]), "'colour'"),
        (lambda: open_source("digits", kinds={"digit": "continuous"}), "is categorical"),
        (lambda: open_source("folder", root, target="species", confounded=False), "cannot be made unconfounded"),
        (lambda: open_source("folder", target="species"), "needs a root"),
        (lambda: open_source("folder", root, target="species", rho=0.9), "no option 'rho'"),
    ]:
        with pytest.raises(UsageError) as e:
            call()
        assert word in str(e.value)
    one = open_source("digits", spurious=["background"])
    assert (one.schema.target, one.schema.spurious) == ("digit", ("background",))
