"""Labelled images with an attribute table: one protocol, one adapter in memory, one for a folder.

A data set of cfaug is three things side by side: a fitted ``schema``, a ``table`` (index = source key) and the
images in the table's order, uint8 (H, W, C) with C in {1, 3}. Indexing gives ``(PIL image, target code)``, as
torchvision's data sets do. Nothing here augments, resizes or re-encodes an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from cfaug.data.images import Pixels, read_image, to_pil
from cfaug.data.schema import Attribute, Schema
from cfaug.errors import DataError, UsageError, near, one_line

SPLITS = ("train", "val", "test")


@runtime_checkable
class AttributeDataset(Protocol):
    """What the other rooms know of a data set. ``table`` is canonical (see ``Schema.canonical``), one row an image.

    In the train split cells of other attributes than the target may be missing (None or NaN).
    """

    schema: Schema
    table: pd.DataFrame
    split: str

    def __len__(self) -> int: ...

    def key(self, i: int, /) -> str:
        """The source key of image ``i``, unique in the data set."""
        ...

    def image(self, i: int, /) -> Pixels:
        """Image ``i``: uint8 (H, W, C), C in {1, 3}."""
        ...

    def __getitem__(self, i: int, /) -> tuple[Any, int]: ...


def partial_in(schema: Schema, split: str) -> tuple[str, ...]:
    """The attributes whose cells may be missing: in training all but the target, in validation and test none.

    Accuracies are counted by group, so a row of those splits without a group could only be dropped.
    """
    return tuple(name for name in schema.names if name != schema.target) if split == "train" else ()


class _Indexed:
    """Keys, targets and (image, target) pairs, the same for every adapter here."""

    schema: Schema
    table: pd.DataFrame
    split: str
    transform: Callable[[Any], Any] | None

    def _prepare(self, table: pd.DataFrame, schema: Schema, split: str) -> None:
        if split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.split = split
        missing = partial_in(schema, split)
        self.schema = schema if schema.fitted else schema.fit(table, missing)
        self.schema.check(table, missing)
        self.table = self.schema.canonical(table)
        if not self.table.index.is_unique:
            twice = self.table.index[self.table.index.duplicated()][0]
            raise DataError(f"source key {twice!r} occurs twice in the table; every image needs its own key")
        self._keys = [str(k) for k in self.table.index]
        target = self.schema.target
        self._targets = [] if target is None else self.schema.index(target, self.table[target]).tolist()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return (self[i] for i in range(len(self)))

    def key(self, i: int, /) -> str:
        """The source key of image ``i``."""
        return self._keys[i]

    def image(self, i: int, /) -> Pixels:
        """Image ``i``: uint8 (H, W, C), C in {1, 3}."""
        raise NotImplementedError

    def __getitem__(self, i: int, /) -> tuple[Any, int]:
        """(PIL image, after ``transform`` if there is one; code of the target). UsageError without a target."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        if not self._targets:
            raise UsageError("this data set has no target, so it has no labels to give; name a target in its Schema")
        picture = to_pil(self.image(i))
        return (picture if self.transform is None else self.transform(picture)), self._targets[i]


class ArrayDataset(_Indexed):
    """Images in memory: uint8 (N, H, W, C), C in {1, 3}, in the order of the N rows of ``table``. Picklable.

    Raises UsageError when images and table do not fit together, DataError for a table outside the schema.
    """

    def __init__(
        self,
        images: Pixels,
        table: pd.DataFrame,
        schema: Schema,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise UsageError(f"expected uint8 images (N, H, W, 1 or 3), got {images.dtype} {images.shape}")
        if len(images) != len(table):
            raise UsageError(f"expected one table row an image, got {len(images)} images and {len(table)} rows")
        self.images: Pixels = images
        self.transform = transform
        self._prepare(table, schema, split)

    def image(self, i: int, /) -> Pixels:
        """Image ``i``: uint8 (H, W, C)."""
        picture: Pixels = self.images[i]
        return picture


class FolderDataset(_Indexed):
    """A directory of images with ``metadata.csv``: ``file_name``, ``split`` and one column an attribute.

    ``split`` is train, val or test in every row; the source key is ``file_name``. The attributes are ``target``,
    ``spurious``, the keys of ``kinds`` and ``values``, and ``attributes`` (more columns, for instance the graph's
    nodes); other columns are ignored. Unless ``schema`` is given it is fitted here, whatever ``split`` is asked
    for: categories over all rows, means and standard deviations over the train rows only. An empty cell is a missing
    value: allowed in train rows, for every attribute but the target.

    Images are read when asked for. Grey images keep their one channel; other modes become RGB. Raises UsageError
    or DataError (one line) for whatever does not hold; ``check_images`` decodes every image ahead of time.
    Names leading out of ``root`` are refused; a symbolic link inside it is taken to be its owner's wish.
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
    ) -> None:
        self.root = Path(root)
        self.transform = transform
        if split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        whole = read_metadata(self.root)
        if schema is None:
            schema = _folder_schema(whole, target, spurious, kinds or {}, values or {}, attributes, self.root)
        rows = whole[whole["split"] == split]
        if rows.empty:
            raise DataError(f"{self.root / 'metadata.csv'}: no row has split {split!r}; mark at least one row {split}")
        gone = next((name for name in rows.index if not (self.root / name).is_file()), None)
        if gone is not None:
            raise DataError(f"{self.root / gone}: metadata.csv names this image, but there is no such file")
        self._prepare(rows, schema, split)

    def image(self, i: int, /) -> Pixels:
        """Image ``i``, decoded now: uint8 (H, W, C). DataError naming the file when it cannot be decoded."""
        return read_image(self.root / self._keys[i])

    def check_images(self, progress: Callable[[Iterator[int]], Iterator[int]] = iter) -> str:
        """Decode every image fully; sha256 (hex) of all pixels in order.

        Raises DataError naming the first image that is unreadable, truncated or of another shape. ``progress`` wraps the iterator over indices (for instance ``functools.partial(tqdm, total=len(dataset))``).
        """
        first: tuple[int, ...] | None = None
        content = hashlib.sha256()
        for i in progress(iter(range(len(self)))):
            image = self.image(i)
            content.update(image.tobytes())
            shape = image.shape
            first = first or shape
            if shape != first:
                raise DataError(
                    f"{self.root / self._keys[i]}: expected height x width x channels {_by(first)} as in "
                    f"{self._keys[0]}, got {_by(shape)}; make all images the same"
                )
        return content.hexdigest()


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def read_metadata(root: Path) -> pd.DataFrame:
    """``root/metadata.csv`` as text columns, index = file_name; checks names and splits of every row."""
    path = root / "metadata.csv"
    if not root.is_dir():
        raise UsageError(f"{root}: expected a directory of images with metadata.csv, but it does not exist")
    if not path.is_file():
        raise UsageError(f"{path}: not found; it must list file_name, split and one column an attribute")
    try:
        # text throughout: the schema decides what is a number, and "NA" may well be a category
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a CSV file ({one_line(error)})") from error
    for column in ("file_name", "split"):
        if column not in table.columns:
            raise DataError(f"{path}: no column {column!r}; {near(column, table.columns)}")
    for number, (name, split) in enumerate(zip(table["file_name"], table["split"]), start=2):
        if not name:
            raise DataError(f"{path}, line {number}: file_name is empty; name an image")
        if (
            PurePosixPath(name).is_absolute()
            or PureWindowsPath(name).drive
            or ".." in name.replace("\\", "/").split("/")
        ):
            raise DataError(f"{path}, line {number}: file_name {name!r} leads out of {root}; use a path inside it")
        if split not in SPLITS:
            raise DataError(f"{path}, row {name!r}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    twice = table["file_name"].duplicated()
    if twice.any():
        raise DataError(f"{path}: file_name {table['file_name'][twice].iloc[0]!r} occurs twice; list every image once")
    return table.set_index("file_name")


def _folder_schema(
    whole: pd.DataFrame,
    target: str | None,
    spurious: Sequence[str],
    kinds: Mapping[str, str],
    values: Mapping[str, Sequence[str]],
    attributes: Sequence[str],
    root: Path,
) -> Schema:
    spurious = [spurious] if isinstance(spurious, str) else list(spurious)
    named = [*([] if target is None else [target]), *spurious, *kinds, *values, *attributes]
    names = list(dict.fromkeys(named))
    if not names:
        raise UsageError("a folder needs at least one attribute; give target= and spurious= as column names")
    columns = [c for c in whole.columns if c != "split"]
    for name in names:
        if name not in columns:
            raise UsageError(f"{root / 'metadata.csv'} has no column {name!r}; {near(name, columns)}")
    declared = [Attribute(n, kinds.get(n, "categorical"), tuple(values[n]) if n in values else None) for n in names]
    train = whole[whole["split"] == "train"]
    if train.empty:
        raise DataError(f"{root / 'metadata.csv'}: the training split is empty; mark at least one row train")
    # categories over every split (a test value unseen in training is still a value), statistics from train alone;
    # which rows may lack a value is judged when a split is opened
    everything = Schema([a for a in declared if a.kind != "continuous"])
    everything = everything.fit(whole, [name for name in everything.names if name != target])
    numbers = Schema([a for a in declared if a.kind == "continuous"])
    numbers = numbers.fit(train, numbers.names)
    merged = [numbers[a.name] if a.kind == "continuous" else everything[a.name] for a in declared]
    return Schema(merged, target, spurious)
