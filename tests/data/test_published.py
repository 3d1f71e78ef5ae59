"""Every published format opens by its name, with the counts and the groups that it was written with."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import published
from helpers.published import COUNTS, SPLITS

from cfaug.data import Grouper, open_source
from cfaug.errors import CfaugError

Y_PLACE = {"target": "label", "spurious": ["place"]}
FORMATS = {
    "waterbirds": ("waterbirds", published.waterbirds, {}, ("species", "background"), [("landbird", "waterbird"), ("land", "water")]),
    "celeba": ("celeba", published.celeba, {}, ("Blond_Hair", "Male"), [("0", "1"), ("0", "1")]),
    "urbancars": ("urbancars", published.urbancars, {}, ("car", "background"), [("urban", "country"), ("urban", "country")]),
    "metashift": ("metashift", published.metashift, {}, ("animal", "place"), [("dog", "cat"), ("outdoor", "indoor")]),
    "metashift directories": (
        "metashift", published.metashift_directories, {}, ("animal", "place"), [("dog", "cat"), ("outdoor", "indoor")],
    ),
    "wilds": ("wilds", published.wilds, {}, ("y", "a"), [("0", "1"), ("0", "1")]),
    "spuco": ("spuco", published.spuco, {}, ("label", "spurious"), [("landbirds", "waterbirds"), ("land", "water")]),
    "huggingface": ("huggingface", published.huggingface, Y_PLACE, ("label", "place"), [("land", "water"), ("land", "water")]),
    "imagefolder": ("huggingface", published.imagefolder, Y_PLACE, ("label", "place"), [("land", "water"), ("land", "water")]),
    "webdataset": ("webdataset", published.webdataset, Y_PLACE, ("label", "place"), [("land", "water"), ("land", "water")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_format_opens_by_name(name: str, tmp_path: Path) -> None:
    source, write, options, (target, spurious), values = FORMATS[name]
    root = write(tmp_path / "d")
    for split in SPLITS:
        data = open_source(source, root, split, size=16, **options)
        assert len(data) == sum(COUNTS[split])
        found = pd.crosstab(data.table[target], data.table[spurious])
        assert [found.loc[y, a] for y in values[0] for a in values[1]] == list(COUNTS[split])
        assert Grouper.fit(data.table, data.schema).target == target
        assert {data.image(i).shape for i in range(len(data))} == {(16, 16, 3)}
        assert len({data.image(i).tobytes() for i in range(len(data))}) == len(data)
        data.check_images()


def test_labels_and_images_belong_together(tmp_path: Path) -> None:
    """The pixels of an image are those of its own row, also where two files list the images in different orders."""
    for name in ("celeba", "huggingface", "webdataset"):
        source, write, options, (target, spurious), values = FORMATS[name]
        root = write(tmp_path / name)
        rows = published.groups()
        known = {}
        for i, (split, y, a) in enumerate(rows):
            published.picture(tmp_path / "one.jpg", i + (name == "celeba"))
            from cfaug.data.images import read_image

            known[read_image(tmp_path / "one.jpg").tobytes()] = (split, values[0][y], values[1][a])
        for split in SPLITS:
            data = open_source(source, root, split, **options)
            for i in range(len(data)):
                assert known[data.image(i).tobytes()] == (
                    split,
                    data.table[target].iloc[i],
                    data.table[spurious].iloc[i],
                )


@pytest.mark.parametrize("name", ["huggingface", "webdataset", "waterbirds"])
def test_a_stored_data_set_goes_to_a_worker(name: str, tmp_path: Path) -> None:
    source, write, options, _, _ = FORMATS[name]
    data = open_source(source, write(tmp_path / "d"), "train", size=16, **options)
    other = pickle.loads(pickle.dumps(data))
    assert np.array_equal(other.image(3), data.image(3))
    del other
    assert data.image(3).shape == (16, 16, 3)


def test_all_of_urbancars_shortcuts_are_spurious(tmp_path: Path) -> None:
    data = open_source("urbancars", published.urbancars(tmp_path / "d"))
    assert data.schema.spurious == ("background", "co_occurring_object")


def damaged(write: Callable[[Path], Path], name: str, old: str, new: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        write(root)
        path = root / name
        path.write_text(path.read_text().replace(old, new, 1))
        return root

    return make


def streaming(root: Path) -> object:
    import datasets

    return datasets.load_from_disk(str(published.huggingface(root)))["train"].to_iterable_dataset()


def without(write: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        write(root)
        (root / name).rename(root / "elsewhere")
        return root

    return make


MESSAGES = {
    "no directory": ("waterbirds", lambda root: root, {}, "expected a directory"),
    "no metadata": ("waterbirds", without(published.waterbirds, "metadata.csv"), {}, "expected metadata.csv in it"),
    "a third class": ("waterbirds", damaged(published.waterbirds, "metadata.csv", "jpg,0,0", "jpg,2,0"), {}, "got '2'"),
    "a fourth split": ("waterbirds", damaged(published.waterbirds, "metadata.csv", "jpg,0,0", "jpg,0,3"), {}, "split 0, 1 or 2, got '3'"),
    "a row of CelebA": ("celeba", damaged(published.celeba, "list_attr_celeba.txt", "000001.jpg  -1", "000001.jpg"), {}, "line 3"),
    "a value of CelebA": ("celeba", damaged(published.celeba, "list_attr_celeba.txt", "000001.jpg  -1", "000001.jpg  0"), {}, "-1 or 1"),
    "no partition": ("celeba", damaged(published.celeba, "list_eval_partition.txt", "000001.jpg", "x.jpg"), {}, "none of 000001.jpg"),
    "no images": ("celeba", without(published.celeba, "img_align_celeba"), {}, "img_align_celeba"),
    "a column": ("huggingface", published.huggingface, {"target": "label", "spurious": ["plaxe"]}, "did you mean place"),
    "an image column": ("huggingface", published.huggingface, {"target": "image", "spurious": ["place"]}, "one value per image"),
    "a hub id": ("huggingface", lambda root: "no/such-data-set", Y_PLACE, "expected a hub id"),
    "streaming": ("huggingface", streaming, Y_PLACE, "streaming"),
    "no shards": ("webdataset", without(published.webdataset, "val-000000.tar"), {"target": "label", "spurious": ["plaxe"]}, "plaxe"),
    "a folder's masks": ("webdataset", published.webdataset, {**Y_PLACE, "masks": "mask"}, "has no masks"),
    "a size": ("waterbirds", published.waterbirds, {"size": 0}, "size: expected one number"),
    "a fit": ("waterbirds", published.waterbirds, {"size": 16, "fit": "crab"}, "one of crop, pad, stretch, got 'crab'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_wrong_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source, write, options, fragment = MESSAGES[name]
    with pytest.raises(CfaugError) as error:
        open_source(source, write(tmp_path / "d"), "train", **options)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)
