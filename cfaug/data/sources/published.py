"""Published benchmarks as they lie on disk: each format read into the table that a folder's metadata.csv would be.

| layout | what it expects below ``root`` | target, spurious |
|---|---|---|
| ``waterbirds`` | metadata.csv (img_filename, y, split 0/1/2, place); Sagawa et al. 2020 | species, background |
| ``celeba`` | list_attr_celeba.txt (-1 or 1), list_eval_partition.txt, img_align_celeba/; Liu et al. 2015 | Blond_Hair, Male |
| ``urbancars`` | bg-0.95_co_occur_obj-0.95/train and bg-0.5_co_occur_obj-0.5/{val,test}; Li et al. 2023 | car, background and co_occurring_object |
| ``metashift`` | metadata_metashift.csv as SubpopBench writes it, or {train,val,test}/cat/cat(indoor); Liang & Zou 2022 | animal, place |
| ``wilds`` | a metadata CSV with a file name, split (0/1/2 or names), y and attributes; Koh et al. 2021 | y, a |
| ``spuco`` | {train,val,test}/CLASS/SPURIOUS/images; Joshi et al. 2023 | label, spurious |

The table has the file names below ``root`` as its index, a column ``split`` (train, val, test) and text columns. Of Waterbirds the
average that is published weighs the test groups as in training: that is ``adjusted_average_accuracy`` of a result.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from cfaug.data.datasets import SPLITS
from cfaug.errors import DataError, UsageError, listed, near, one_line

log = logging.getLogger(__name__)

SPLIT_NAMES = {"0": "train", "1": "val", "2": "test", "valid": "val", "validation": "val"} | {s: s for s in SPLITS}
FILE_COLUMNS = ("file_name", "filename", "img_filename", "image_path", "filepath", "path", "image")
IMAGE = re.compile(r"\.(jpe?g|png|webp)$", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """``read``: root -> table; ``target`` and ``spurious`` are what the benchmark is about."""

    read: Callable[[Path], pd.DataFrame]
    target: str
    spurious: tuple[str, ...]


def read_waterbirds(root: Path) -> pd.DataFrame:
    """species (landbird, waterbird) and background (land, water) of the 0/1 columns ``y`` and ``place``."""
    root, below = _inner(root, "metadata.csv", "waterbird_complete95_forest2water2")
    found = _csv(root / "metadata.csv", ("img_filename", "y", "split", "place"))
    table = pd.DataFrame(
        {
            "split": _splits(found["split"], root / "metadata.csv"),
            "species": _named(found, "y", ("landbird", "waterbird"), root),
            "background": _named(found, "place", ("land", "water"), root),
        }
    )
    return table.set_axis(_index(below, found["img_filename"]), axis=0)


def read_celeba(root: Path) -> pd.DataFrame:
    """All forty attributes as 0 or 1, of the files' -1 and 1; rows of the two files are joined by the image's name."""
    attributes = _one_of(root, "list_attr_celeba.txt", "Anno/list_attr_celeba.txt")
    partition = _one_of(root, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    images = next(
        (
            name
            for name in ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba")
            if (root / name).is_dir()
        ),
        None,
    )
    if images is None:
        raise UsageError(
            f"{root}: expected a directory img_align_celeba with the images, got none; extract the archive there"
        )
    lines = _text(attributes).splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    rows = [line.split() for line in lines[2:] if line.strip()]
    wrong = next((number for number, row in enumerate(rows, 3) if len(row) != len(names) + 1), None)
    if not rows or wrong is not None:
        raise DataError(
            f"{attributes}, line {wrong or 3}: expected an image's name and {len(names)} values as in line 2, got a different number; "
            "use the published file"
        )
    table = pd.DataFrame([row[1:] for row in rows], columns=names, index=[row[0] for row in rows])
    strange = ~table.isin(["-1", "1"])
    if strange.any(axis=None):
        column = str(strange.any().idxmax())
        got = table.loc[strange[column], column].iloc[0]
        raise DataError(f"{attributes}: expected -1 or 1 in {column}, got {got!r}; use the published file")
    table = table.replace({"-1": "0"})
    splits = dict(line.split()[:2] for line in _text(partition).splitlines() if line.strip())
    missing = next((name for name in table.index if name not in splits), None)
    if missing is not None:
        raise DataError(
            f"{partition}: expected a split of every image of {attributes.name}, got none of {missing}; use the published files"
        )
    table.insert(0, "split", _splits(pd.Series([splits[name] for name in table.index], index=table.index), partition))
    return table.set_axis(_index(f"{images}/", table.index), axis=0)


def read_urbancars(root: Path) -> pd.DataFrame:
    """car, background and co_occurring_object (urban, country), from the names of the directories."""
    root, below = _inner(root, "bg-0.95_co_occur_obj-0.95", "urbancars", "urbancars_images")
    pattern = re.compile(r"obj-(\w+)_bg-(\w+)_co_occur_obj-(\w+)")
    rows = []
    for split, ratio in (("train", "0.95"), ("val", "0.5"), ("test", "0.5")):
        place = root / f"bg-{ratio}_co_occur_obj-{ratio}" / split
        for directory in sorted(place.glob("obj-*")):
            if named := pattern.fullmatch(directory.name):
                for image in _images(directory):
                    rows.append((below + image.relative_to(root).as_posix(), split, *named.groups()))
    return _of_rows(rows, ["car", "background", "co_occurring_object"], root)


def read_metashift(root: Path) -> pd.DataFrame:
    """animal (dog, cat) and place (outdoor, indoor); of SubpopBench's metadata, whose file names may be of another machine."""
    for name in ("metadata_metashift.csv", "metashift/metadata_metashift.csv"):
        if (root / name).is_file():
            found = _csv(root / name, ("filename", "y", "a", "split"))
            table = pd.DataFrame(
                {
                    "split": _splits(found["split"], root / name),
                    "animal": _named(found, "y", ("dog", "cat"), root),
                    "place": _named(found, "a", ("outdoor", "indoor"), root),
                }
            )
            files = [_below(root, written) for written in found["filename"]]
            return table.set_axis(pd.Index(files, dtype=object), axis=0)
    root, below = _inner(
        root, "train", "MetaShift-Cat-Dog-indoor-outdoor", "metashift/MetaShift-Cat-Dog-indoor-outdoor"
    )
    rows = []
    for split in SPLITS:
        for directory in sorted((root / split).glob("*/*")):
            if named := re.fullmatch(r"(\w+)\((\w+)\)", directory.name):
                for image in _images(directory):
                    rows.append((below + image.relative_to(root).as_posix(), split, *named.groups()))
    return _of_rows(rows, ["animal", "place"], root)


def read_wilds(root: Path) -> pd.DataFrame:
    """The columns of metadata.csv (or of the one metadata_*.csv) as they are, but for the split, which may be numbered."""
    files = [root / "metadata.csv"] if (root / "metadata.csv").is_file() else sorted(root.glob("metadata_*.csv"))
    if len(files) != 1:
        raise UsageError(
            f"{root}: expected metadata.csv, or one metadata_*.csv, got {listed([f.name for f in files]) or 'none'}; put one there"
        )
    found = _csv(files[0], ("split",))
    column = next((name for name in FILE_COLUMNS if name in found), None)
    if column is None:
        raise DataError(
            f"{files[0]}: expected a column of file names ({', '.join(FILE_COLUMNS)}), got {listed(found.columns)}; rename it"
        )
    index = _index("", found[column])
    table = found.drop(columns=[column, "split"]).rename(columns={"Unnamed: 0": ""})
    table.insert(0, "split", found["split"].str.lower().map(SPLIT_NAMES))
    others = table["split"].isna()
    if others.any():  # id_val, ood_test and the like
        log.warning(
            "%s: %d rows of split %s are left out",
            files[0],
            int(others.sum()),
            listed(dict.fromkeys(found["split"][others])),
        )
    return table.set_axis(index, axis=0)[~others.to_numpy()]


def read_spuco(root: Path) -> pd.DataFrame:
    """label and spurious: the names of the two levels of directories below train, val and test."""
    root, below = _inner(root, "train", "spuco_birds", "spuco_dogs", "spuco_sun")
    rows = []
    for split in SPLITS:
        for directory in sorted((root / split).glob("*/*")):
            for image in _images(directory):
                rows.append((below + image.relative_to(root).as_posix(), split, directory.parent.name, directory.name))
    return _of_rows(rows, ["label", "spurious"], root)


LAYOUTS: Mapping[str, Layout] = {
    "waterbirds": Layout(read_waterbirds, "species", ("background",)),
    "celeba": Layout(read_celeba, "Blond_Hair", ("Male",)),
    "urbancars": Layout(read_urbancars, "car", ("background", "co_occurring_object")),
    "metashift": Layout(read_metashift, "animal", ("place",)),
    "wilds": Layout(read_wilds, "y", ("a",)),
    "spuco": Layout(read_spuco, "label", ("spurious",)),
}
"""Name in ``data.source`` -> how that benchmark is read."""


def _inner(root: Path, wanted: str, *names: str) -> tuple[Path, str]:
    """The directory that has ``wanted``: ``root``, or one of ``names`` in it; and its path below ``root`` with a slash."""
    if not root.is_dir():
        raise UsageError(f"{root}: expected a directory, but it does not exist; correct data.root")
    for name in ("", *names):
        if (root / name / wanted).exists():
            return root / name, f"{name}/" if name else ""
    beside = sorted(entry.name for entry in root.iterdir())
    raise UsageError(
        f"{root}: expected {wanted} in it, got {listed(beside) or 'an empty directory'}; {near(wanted, beside)}"
    )


def _one_of(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UsageError(f"{root}: expected {names[0]} in it, got no such file; put the published file there")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({one_line(error)}); replace the file") from None


def _csv(path: Path, needed: Iterable[str]) -> pd.DataFrame:
    """A CSV file of text columns; DataError for one that cannot be read, or that lacks a column or has no rows."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors of parsing and of encoding are ValueErrors
        raise DataError(f"{path}: cannot be read as a CSV file ({one_line(error)}); correct or replace it") from None
    for name in needed:
        if name not in table:
            raise DataError(f"{path}: expected a column {name!r}; {near(name, map(str, table.columns))}")
    if table.empty:
        raise DataError(f"{path}: expected rows, got a header alone; use the published file")
    return table


def _splits(column: pd.Series, where: Path) -> pd.Series:
    found = column.map(SPLIT_NAMES)
    if found.isna().any():
        raise DataError(
            f"{where}: expected split 0, 1 or 2, got {column[found.isna()].iloc[0]!r}; use the published file"
        )
    return found


def _named(table: pd.DataFrame, column: str, names: tuple[str, str], root: Path) -> pd.Series:
    found = table[column].map(dict(zip(("0", "1"), names)))
    if found.isna().any():
        got = table[column][found.isna()].iloc[0]
        raise DataError(
            f"{root}: expected 0 ({names[0]}) or 1 ({names[1]}) in column {column!r}, got {got!r}; use the published file"
        )
    return found


def _index(below: str, files: Iterable[str]) -> pd.Index:
    names = [below + str(PurePosixPath(str(name).replace("\\", "/"))) for name in files]
    led_out = next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)
    if led_out is not None:
        raise DataError(f"expected file names below the root, got {led_out!r}, which leads out of it; correct it")
    index = pd.Index(names, dtype=object, name="file_name")
    if not index.is_unique:
        raise DataError(f"expected every image once, got {index[index.duplicated()][0]!r} twice; remove one row")
    return index


def _below(root: Path, written: str) -> str:
    """The longest tail of a path that exists below ``root``; the path itself where there is none, which is then said to be missing."""
    parts = PurePosixPath(written.replace("\\", "/")).parts
    parts = tuple(part for part in parts if part not in ("/", ".."))
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if (root / tail).is_file()), "/".join(parts))


def _images(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if IMAGE.search(entry.name)) if directory.is_dir() else []


def _of_rows(rows: Sequence[tuple[str, ...]], attributes: list[str], root: Path) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["file_name", "split", *attributes], dtype=object).set_index("file_name")
    for split in SPLITS:
        if not (table["split"] == split).any():
            raise DataError(
                f"{root}: expected {split} images in the layout of this benchmark, got none; compare the directories with its page"
            )
    return table
