"""A directory with metadata.csv: what is read, and that every spelling has one reading."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.bird_folder import ROWS, open_folder, write

from cfaug.data import AttributeDataset, FolderDataset, duplicates_across_splits
from cfaug.errors import DataError, UsageError


def rewrite(root: Path, change: object) -> Path:
    path = root / "metadata.csv"
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    return root


def test_a_folder_has_the_statistics_of_train(tmp_path: Path) -> None:
    train = open_folder(write(tmp_path / "d"))
    assert isinstance(train, AttributeDataset)
    assert train.schema["place"].values == ("ice", "sand", "sea")  # categories of every split
    assert train.schema["age"].mean == 2.0  # the val row's 100 is not looked at
    assert (train.schema.target, train.schema.spurious) == ("species", ("place",))
    assert train.schema == open_folder(tmp_path / "d", "test").schema
    image, target = train[1]
    assert (len(train), train.key(1), image.size, image.mode, target) == (2, "b.png", (6, 4), "RGB", 1)
    assert (train.image(1).shape, train.image(1).dtype, train.mask(1)) == ((4, 6, 3), np.uint8, None)
    assert open_folder(tmp_path / "d", "test").key(0) == "sub/d.png"
    train.check_images()


def test_grey_stays_one_channel_and_a_transform_is_applied(tmp_path: Path) -> None:
    grey = open_folder(write(tmp_path / "d", mode="L"), transform=np.asarray)
    assert grey.image(0).shape == (4, 6, 1)
    assert grey[0][0].shape == (4, 6)


def test_a_hidden_cause_is_no_column_and_the_message_says_how_to_write_it(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    with pytest.raises(UsageError, match=r"'region'.*a cause that no column has is written a <-> b"):
        FolderDataset(root, "train", "species", ["place"], attributes=["region"])
    with pytest.raises(UsageError, match="'plaice'; did you mean place") as spurious:
        FolderDataset(root, "train", "species", ["plaice"])
    assert "<->" not in str(spurious.value)


def test_a_table_of_another_name_is_pointed_at(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    (root / "metadata.csv").rename(root / "labels.csv")
    with pytest.raises(UsageError, match=r"write one, out of labels\.csv"):
        open_folder(root)


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "birds")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_folder(Path("~/birds")).root == tmp_path / "birds"


@pytest.mark.parametrize("written", ["./a.png", ".//a.png", "a.png"])
def test_a_file_is_listed_once_however_it_is_spelled(tmp_path: Path, written: str) -> None:
    root = write(tmp_path / "d")
    with (root / "metadata.csv").open("a") as file:
        file.write(f"{written},test,land,sea,1,x\n")
    with pytest.raises(DataError, match=r"line 6: expected every image once, got 'a.png' twice \(also in line 2\)"):
        open_folder(root)


@pytest.mark.parametrize("written", ["sub\\d.png", "sub//d.png", "./sub/d.png"])
def test_a_path_has_one_reading(tmp_path: Path, written: str) -> None:
    root = rewrite(write(tmp_path / "d"), lambda text: text.replace("sub/d.png", written))
    assert open_folder(root, "test").key(0) == "sub/d.png"
    assert open_folder(root, "test").image(0).shape == (4, 6, 3)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_is_found_in_either_unicode_form(tmp_path: Path, form: str) -> None:
    name, other = (unicodedata.normalize(f, "é.png") for f in (form, "NFD" if form == "NFC" else "NFC"))
    root = write(tmp_path / "d", [(name, *ROWS[0][1:]), *ROWS[1:]])
    whole = (root / "metadata.csv").read_text()
    (root / "metadata.csv").write_text(whole.replace(name, other))
    assert open_folder(root).key(0) == name  # as the disk has it
    assert open_folder(root).image(0).shape == (4, 6, 3)
    (root / "metadata.csv").write_text(whole + f"{other},val,land,sea,1,x\n")
    with pytest.raises(DataError, match="twice"):
        open_folder(root)


def test_names_that_differ_in_case_are_two_files_where_they_are(tmp_path: Path) -> None:
    assert len(open_folder(write(tmp_path / "d", [*ROWS, ("A.png", "train", "land", "sea", 1.0)]))) == 3
    with (tmp_path / "d" / "metadata.csv").open("a") as file:
        file.write("A.png,val,land,sea,1,x\n")
    with pytest.raises(DataError, match=r"'A\.png' twice \(also in line 6\)"):
        open_folder(tmp_path / "d")
    root = write(tmp_path / "e", [*ROWS, ("A.png", "test", "land", "sea", 1.0)])
    (root / "A.png").unlink()
    (root / "A.png").hardlink_to(root / "a.png")  # as on a file system that ignores case
    with pytest.raises(DataError, match=r"'A\.png' twice"):
        open_folder(root)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheet_s_separator_is_read(tmp_path: Path, separator: str) -> None:
    expected = open_folder(write(tmp_path / "d"))
    rewrite(tmp_path / "d", lambda text: "\ufeff" + text.replace(",", separator).replace("\n", "\r\n"))
    found = open_folder(tmp_path / "d")
    assert found.table.equals(expected.table)
    assert found.schema == expected.schema


def test_empty_columns_and_lines_are_left_out(tmp_path: Path) -> None:
    expected = open_folder(write(tmp_path / "d"))
    for change in (
        lambda text: text.replace("\n", ",\n"),
        lambda text: text.replace("x\n", "x,\n"),  # in the rows only: pandas would shift every column
        lambda text: text.replace("\n", "\n\n") + ",,,,,\n",
        lambda text: "".join(f"{i}," * (i > 0) + f"{',' * (i == 0)}{line}\n" for i, line in enumerate(text.split())),
        lambda text: text.replace("file_name,split", "file_name, split"),
    ):
        original = (tmp_path / "d" / "metadata.csv").read_text()
        rewrite(tmp_path / "d", change)
        assert open_folder(tmp_path / "d").table.equals(expected.table)
        (tmp_path / "d" / "metadata.csv").write_text(original)


def test_a_quoted_cell_may_hold_commas_and_lines(tmp_path: Path) -> None:
    root = rewrite(write(tmp_path / "d"), lambda text: text.replace("sand", '"sand, wet\nand dry"'))
    assert "sand, wet\nand dry" in (open_folder(root).schema["place"].values or ())


def test_look_alike_categories_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        (f"{i}.png", "train", "land", place, i)
        for i, place in enumerate(["lagoon", "lagoon ", "caf\u00e9", "cafe\u0301", "sea"])
    ]
    root = write(tmp_path / "d", rows)
    for _ in range(2):
        assert len(open_folder(root).schema["place"].values or ()) == 5
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert any("'lagoon' (1 rows), 'lagoon ' (1 rows)" in line for line in told)
    assert any("'cafe\\u0301' (1 rows), 'caf\\xe9' (1 rows)" in line for line in told)


def test_transparency_is_told_with_its_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "d", mode="RGBA")
    train = open_folder(root)
    train.check_images()
    assert "2 train images have transparency and are shown on white (first: a.png)" in caplog.text


def test_the_same_pixels_in_two_splits_are_found(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    splits = [open_folder(root, split) for split in ("train", "val", "test")]
    assert duplicates_across_splits(splits) == []
    (root / "sub" / "d.png").write_bytes((root / "b.png").read_bytes())
    (root / "a.png").write_bytes((root / "b.png").read_bytes())  # twice in train is not across
    pair = (("train", "a.png"), ("test", "sub/d.png"))
    assert duplicates_across_splits(splits) == [pair]
    for dataset in splits:
        dataset.check_images()
    (root / "a.png").unlink()  # after check_images nothing is decoded again
    assert duplicates_across_splits(splits) == [pair]


def test_the_content_digest_sees_pixels_order_and_channels(tmp_path: Path) -> None:
    one = open_folder(write(tmp_path / "a"))
    assert one.check_images() == open_folder(write(tmp_path / "b")).check_images()
    first, second = (tmp_path / "b" / name for name in ("a.png", "b.png"))
    first.rename(tmp_path / "x"), second.rename(first), (tmp_path / "x").rename(second)
    assert one.check_images() != open_folder(tmp_path / "b").check_images()
    assert one.check_images() != open_folder(write(tmp_path / "d", mode="L")).check_images()


def test_only_the_asked_columns_are_attributes(tmp_path: Path) -> None:
    whole = FolderDataset(write(tmp_path / "d"), target="species", values={"place": ("sea", "sand", "ice")})
    assert whole.schema.names == ("species", "place")
    assert whole.schema["place"].values == ("sea", "sand", "ice")
    assert isinstance(whole.table, pd.DataFrame)
