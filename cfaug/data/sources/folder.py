"""A directory of images with ``metadata.csv``: one row per image, ``file_name``, ``split`` and one column per attribute.

The file is a CSV file in UTF-8 with a header; its cells are separated by commas, or all by semicolons or tabs, as spreadsheets
write them. A file name is a path inside the directory. Everything in the file is text: the schema decides what is a number.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd

from cfaug.data.datasets import SPLITS, check_split
from cfaug.data.files import expand
from cfaug.data.images import Decoded, Fit, Pixels, decode, read_mask, resize
from cfaug.data.schema import Schema
from cfaug.data.sources.published import LAYOUTS
from cfaug.data.sources.stored_images import Size, StoredImages, column_schema
from cfaug.errors import DataError, UsageError, listed, near, one_line, shown

METADATA = "metadata.csv"


class FolderDataset(StoredImages):
    """A directory of images with ``metadata.csv``: ``file_name``, ``split`` and one column per attribute.

    ``split`` is train, val or test in every row; the source key is ``file_name`` with forward slashes. The attributes are
    ``target``, ``spurious``, the keys of ``kinds`` and ``values``, and ``attributes`` (more columns, for instance the graph's
    nodes); other columns are ignored. Unless ``schema`` is given it is fitted here, whatever ``split`` is asked
    for: categories over all rows, means and standard deviations over the train rows only. An empty cell is a missing
    value: allowed in train rows, for every attribute but the target.

    ``layout``: "folder", or a published format on disk (:mod:`cfaug.data.sources.published`), which names its own attributes;
    ``target`` and ``spurious`` default to those. ``size``, ``fit``: the working size (:class:`StoredImages`). ``masks``: a column
    of file names, or a directory inside ``root`` with a PNG named as each image.

    Images are read when asked for, upright and with transparency on white. Raises UsageError or DataError (one line) for
    whatever does not hold; ``check_images`` decodes every image ahead of time. Names that lead out of ``root`` are refused; a
    symbolic link inside it is taken to be its owner's wish.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        target: str | None = None,
        spurious: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
        values: Mapping[str, Sequence[str]] | None = None,
        schema: Schema | None = None,
        attributes: Sequence[str] = (),
        transform: Callable[[Any], Any] | None = None,
        *,
        size: Size | None = None,
        fit: Fit = "crop",
        masks: str | None = None,
        layout: str = "folder",
    ) -> None:
        root = expand(root)
        check_split(split)
        if layout == "folder":
            whole = read_metadata(root)
        else:
            published = LAYOUTS[layout]
            whole = published.read(root)
            target, spurious = target or published.target, spurious or published.spurious
        if schema is None:
            schema = column_schema(whole, target, spurious, kinds or {}, values or {}, attributes, root / METADATA)
        rows = whole[whole["split"] == split]
        if rows.empty:
            raise DataError(f"{root / METADATA}: expected rows with split {split!r}, got none; mark at least one row")
        rows = rows.set_axis(pd.Index([_on_disk(root, name) for name in rows.index], dtype=object), axis=0)
        self.root = root
        self._masks = None if masks is None else _masks_of(root, rows, masks)
        super().__init__(rows, schema, split, transform, size, fit)

    def decoded(self, i: int) -> Decoded:
        return decode(self.root / self._keys[i])

    def where(self, i: int) -> str:
        return str(self.root / self._keys[i])

    def mask(self, i: int, /) -> Pixels | None:
        """The object in image ``i``: uint8 (H, W) of the image's working size, 255 on the object; None without ``masks``.

        DataError where the file is missing or damaged, has a different size than the image, or marks nothing or everything.
        """
        if self._masks is None:
            return None
        key = self._keys[i]
        if not self._masks[key]:
            raise DataError(
                f"{self.where(i)}: expected a mask for every image, got none; name one, or remove data.masks"
            )
        path = self.root / self._masks[key]
        mask, image = read_mask(path), self.decoded(i).pixels
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{path}: expected a mask of {image.shape[1]}x{image.shape[0]} px as its image {key}, got {mask.shape[1]}x{mask.shape[0]}; "
                "make it of the image's size"
            )
        if mask.max() < 128 or mask.min() >= 128:
            marked = "nothing" if mask.max() < 128 else "everything"
            raise DataError(
                f"{path}: expected a mask with an object in white and its surroundings in black, got {marked} marked; correct it"
            )
        return mask if self.size is None else resize(mask[..., None], self.size, self.fit)[..., 0]


def _masks_of(root: Path, rows: pd.DataFrame, masks: str) -> dict[str, str]:
    """Image -> its mask's file below ``root``: what the column ``masks`` says, or the PNG of its name in the directory ``masks``."""
    if masks in rows.columns:
        return {
            str(key): _inside(written, f"{root / METADATA}, {masks} of {key}", root) if written.strip() else ""
            for key, written in rows[masks].items()
        }
    if (root / masks).is_dir():
        found = {}
        for key in map(str, rows.index):
            image = PurePosixPath(key)
            named = [f"{masks}/{name}.png" for name in (image.with_suffix(""), image.stem)]
            found[key] = next((name for name in named if (root / name).is_file()), "")
        return found
    columns = [str(column) for column in rows.columns if column != "split"]
    raise UsageError(
        f"masks: expected a column of {METADATA} or a directory in {root}, got {masks!r}; {near(masks, columns)}"
    )


# --- metadata.csv
def read_metadata(root: Path) -> pd.DataFrame:
    """``root/metadata.csv`` as text columns, index = file_name as :func:`_inside` writes it; every row is checked.

    Raises UsageError where there is no such file, and DataError naming the line for a row that has too many or too few cells,
    a file name that is empty, leads out of ``root`` or stands there twice, or a split that does not exist.
    """
    path = root / METADATA
    if not root.is_dir():
        raise UsageError(
            f"{root}: expected a directory of images with {METADATA}, but it does not exist; correct the path"
        )
    if not path.is_file():
        others = sorted(other.name for other in root.glob("*.csv"))
        there = f", out of {listed(others)}, which is there" if others else ""
        raise UsageError(
            f"{path}: expected this file with file_name, split and one column per attribute, but it was not found; write one{there}"
        )
    lines, header, rows = _read_cells(path)
    for column in ("file_name", "split"):
        if column not in header:
            raise DataError(f"{path}: expected a column {column!r}; {near(column, header)}")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: expected every column once, got {twice!r} twice; rename one of them")
    table = pd.DataFrame(rows, columns=pd.Index(header, dtype=object), dtype=object)
    table = table[[name for name in header if name]]
    names: list[str] = []
    for line, written, split in zip(lines, table["file_name"], table["split"]):
        names.append(_inside(written, f"{path}, line {line}", root))
        if split not in SPLITS:
            raise DataError(
                f"{path}, line {line} ({shown(written)}): expected a split among {', '.join(SPLITS)}, got {split!r}; correct it"
            )
    _refuse_twice(root, path, names, lines)
    return table.drop(columns="file_name").set_axis(pd.Index(names, dtype=object, name="file_name"), axis=0)


def _read_cells(path: Path) -> tuple[list[int], list[str], list[list[str]]]:
    """Line numbers, header, and rows of as many cells as the header has. Empty lines, and empty cells beyond, are left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            text = handle.read()
        separator = _separator(text)
        reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
        found = [(reader.line_num, row) for row in reader if any(row)]
    except PermissionError:
        raise DataError(
            f"{path}: expected a file that may be read, got permission denied; change its permissions"
        ) from None
    except UnicodeDecodeError as error:
        form = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise DataError(f"{path}: expected a CSV file in UTF-8, got {form}; save it as CSV UTF-8") from None
    except (csv.Error, OSError) as error:
        raise DataError(f"{path}: cannot be read as a CSV file ({one_line(error)}); correct or replace it") from error
    if not found:
        raise DataError(
            f"{path}: expected a CSV file with a header, got an empty file; list file_name, split and attributes"
        )
    header = [name.strip() for name in found[0][1]]
    while header and not header[-1]:
        header.pop()
    lines, rows = [], []
    for line, row in found[1:]:
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: expected {len(header)} cells as in the header, got {len(row)}; put a value that holds "
                f"{separator!r} in double quotes, and leave a cell empty where a value is missing"
            )
        lines.append(line)
        rows.append(row)
    return lines, header, rows


def _separator(text: str) -> str:
    """A comma; a semicolon or a tab where only that makes file_name a column of its own."""
    first = text.lstrip().partition("\n")[0]
    columns = {mark: {name.strip().strip('"') for name in first.split(mark)} for mark in ",;\t"}
    return next((mark for mark in ",;\t" if "file_name" in columns[mark]), ",")


def _inside(written: str, where: str, root: Path) -> str:
    """A file name as one relative path with forward slashes: ``./a.png``, ``a//b.png`` and ``a\\b.png`` each have one reading."""
    if not written.strip():
        raise DataError(f"{where}: expected a file name, got an empty cell; name an image")
    name = written.replace("\\", "/")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(written).drive or ".." in name.split("/"):
        raise DataError(f"{where}: expected a path inside {root}, got {written!r}, which leads out of it; correct it")
    return str(PurePosixPath(name))


def _refuse_twice(root: Path, path: Path, names: Sequence[str], lines: Sequence[int]) -> None:
    """DataError for a file that is listed in two rows, also where its name is spelled in two ways."""
    first: dict[str, int] = {}
    alike: dict[str, list[int]] = {}  # names that differ in upper and lower case are one file on some file systems
    for i, name in enumerate(names):
        form = unicodedata.normalize("NFC", name)
        near_by = alike.setdefault(form.casefold(), [])
        other = first.setdefault(form, i)
        if other == i:
            other = next((k for k in near_by if _same_file(root / name, root / names[k])), i)
        if other != i:
            raise DataError(
                f"{path}, line {lines[i]}: expected every image once, got {name!r} twice (also in line {lines[other]}); "
                "remove one row"
            )
        near_by.append(i)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _on_disk(root: Path, name: str) -> str:
    """``name``, or the Unicode form of it that the file's name has (macOS decomposes accents). DataError if there is no file."""
    for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
        if (root / form).is_file():
            return form
    place = (root / name).parent
    beside = [entry.name for entry in place.iterdir()] if place.is_dir() else []
    hint = near(PurePosixPath(name).name, beside) if len(beside) else f"there is no directory {place}"
    raise DataError(f"{root / name}: metadata.csv names this image, but there is no such file; {hint}")
