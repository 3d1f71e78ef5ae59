"""A Hugging Face data set of images as a data set of cfaug: its columns are the attributes.

``root`` is a hub id, a directory of ``save_to_disk``, or a directory that ``imagefolder`` reads. The images are read as they are
stored, through the same decoding as files. The source key is the stored file's name where every image has one of its own, else the
split and the row's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cfaug.data.datasets import SPLITS, check_split
from cfaug.data.files import expand
from cfaug.data.images import Decoded, Fit, decode
from cfaug.data.schema import Schema
from cfaug.data.sources.stored_images import Size, StoredImages, column_schema
from cfaug.errors import UsageError, listed, near, one_line

SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


class HuggingFaceImages(StoredImages):
    """One split of a ``datasets.DatasetDict``, or of the one that ``root`` names.

    ``target``, ``spurious``, ``kinds``, ``values`` and ``attributes`` name columns; see :class:`~cfaug.data.FolderDataset`. A ClassLabel
    column has the names of its classes as values. Raises UsageError for streaming data sets, for a split, an image or an attribute
    that is not there, and for columns that hold several values.
    """

    def __init__(
        self,
        root: Any,
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
    ) -> None:
        import datasets

        check_split(split)
        self.name = str(root) if isinstance(root, str | Path) else type(root).__name__
        found = _load(root) if isinstance(root, str | Path) else root
        if isinstance(found, datasets.IterableDatasetDict | datasets.IterableDataset):
            raise UsageError(
                f"{self.name}: expected a data set with an index, got a streaming one; load it without streaming=True"
            )
        if not isinstance(found, datasets.DatasetDict):
            raise UsageError(
                f"{self.name}: expected a data set with the splits {', '.join(SPLITS)}, got {type(found).__name__}; put them into a DatasetDict"
            )
        parts = {name: _part(found, name, self.name) for name in SPLITS}
        wanted = list(
            dict.fromkeys([*([target] if target else []), *spurious, *(kinds or {}), *(values or {}), *attributes])
        )
        tables = {
            name: _table(parts[name], wanted, name, self.name) for name in (SPLITS if schema is None else (split,))
        }
        if schema is None:
            whole = pd.concat([table.assign(split=name) for name, table in tables.items()])
            schema = column_schema(whole, target, spurious, kinds or {}, values or {}, attributes, self.name)
        image = _image_column(parts[split], self.name)
        self._images = (
            parts[split].cast_column(image, datasets.Image(decode=False)).with_format(None).select_columns([image])
        )
        self._column = image
        super().__init__(tables[split], schema, split, transform, size, fit)

    def decoded(self, i: int) -> Decoded:
        stored = self._images[i][self._column]
        data = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])
        return decode(data, self.where(i))

    def where(self, i: int) -> str:
        return f"{self.name}, image {self._keys[i]!r}"


def _load(root: str | Path) -> Any:
    import datasets

    place = expand(root)
    try:
        if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            return datasets.load_from_disk(str(place))
        if place.is_dir():
            return datasets.load_dataset("imagefolder", data_dir=str(place))
        return datasets.load_dataset(str(root))
    except Exception as error:  # the library's and the network's are of many kinds
        raise UsageError(
            f"data.root: expected a hub id, a directory of save_to_disk or of imagefolder, got {str(root)!r} ({one_line(error, 160)}); correct it"
        ) from None


def _part(found: Any, split: str, name: str) -> Any:
    part = next((found[word] for word in SPLIT_NAMES[split] if word in found), None)
    if part is None:
        raise UsageError(
            f"{name}: expected a split {' or '.join(SPLIT_NAMES[split][:2])}, got {', '.join(found)}; split it (train_test_split), save_to_disk, and "
            "give that directory"
        )
    return part


def _image_column(part: Any, name: str) -> str:
    import datasets

    images = [column for column, feature in part.features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise UsageError(
            f"{name}: expected one column of images, got {listed(images) or 'none'}; keep one (cast_column, remove_columns)"
        )
    return str(images[0])


def _table(part: Any, wanted: Sequence[str], split: str, name: str) -> pd.DataFrame:
    import datasets

    columns = {}
    for column in wanted:
        feature = part.features.get(column)
        if feature is None:
            raise UsageError(f"{name}: expected a column {column!r}; {near(column, part.column_names)}")
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise UsageError(
                f"{name}: expected one value per image in column {column!r}, got {one_line(feature, 80)}; make it a ClassLabel or a Value"
            )
        cells = part.select_columns([column]).with_format(None)[:][column]
        if isinstance(feature, datasets.ClassLabel):
            columns[column] = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in cells]
        else:
            columns[column] = list(cells)
    return pd.DataFrame(columns, index=pd.Index(_keys(part, split, name), dtype=object), dtype=object)


def _keys(part: Any, split: str, name: str) -> list[str]:
    """The stored files' names where there is one for every image, and in the order of the rows; else the rows' numbers."""
    import datasets

    image = _image_column(part, name)
    names: list[str] = []
    if part._indices is None:  # of a selection the stored table has other rows
        stored = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        paths = stored.data.column(image).combine_chunks().field("path").to_pylist()
        names = [Path(path).name if path else "" for path in paths]
    if len(names) == len(part) and all(names) and len(set(names)) == len(names):
        return [f"{split}/{one}" for one in names]
    return [f"{split}-{i:07d}" for i in range(len(part))]
