"""Shards in WebDataset's format as a data set of cfaug: an image and a JSON object of attributes per sample.

``root`` holds the shards of each split: ``train-*.tar`` and so on, or ``train/*.tar``. They are read once, in order, by the webdataset
library. The encoded images are copied into one temporary file, because a data set must give any image at any time and a tar that is
read as a stream cannot.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.data.datasets import SPLITS, check_split
from cfaug.data.files import expand
from cfaug.data.images import Decoded, Fit, decode
from cfaug.data.schema import Schema
from cfaug.data.sources.stored_images import Size, StoredImages, column_schema
from cfaug.errors import DataError, UsageError, listed, near, one_line, shown

IMAGES = ("jpg", "jpeg", "png", "webp")


class WebDatasetImages(StoredImages):
    """One split of a directory of shards; the source key is the shard's name and the sample's key.

    ``target``, ``spurious``, ``kinds``, ``values`` and ``attributes`` name fields of the JSON object; see
    :class:`~cfaug.data.FolderDataset`. Raises UsageError without shards of a split or for a field that no sample has, DataError
    naming the sample that lacks an image or a JSON object.
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
    ) -> None:
        check_split(split)
        self.root = expand(root)
        shards = {name: _shards(self.root, name) for name in SPLITS}
        handle, self._spool = tempfile.mkstemp(prefix="cfaug-images-")
        weakref.finalize(self, _remove, self._spool, os.getpid())
        with os.fdopen(handle, "wb") as spool:
            rows, self._spans = _read(shards[split], spool)
        if schema is None:
            others = [_read(paths, None)[0].assign(split=name) for name, paths in shards.items() if name != split]
            whole = pd.concat([rows.assign(split=split), *others])
            schema = column_schema(whole, target, spurious, kinds or {}, values or {}, attributes, self.root)
        for name in schema.names:
            if name not in rows:
                raise UsageError(
                    f"{self.root}: expected a field {name!r} in the JSON objects; {near(name, map(str, rows.columns))}"
                )
        super().__init__(rows, schema, split, transform, size, fit)

    def decoded(self, i: int) -> Decoded:
        start, length = self._spans[i].tolist()
        with open(self._spool, "rb") as spool:
            spool.seek(start)
            return decode(spool.read(length), self.where(i))

    def where(self, i: int) -> str:
        return f"{self.root}, sample {self._keys[i]!r}"


def _shards(root: Path, split: str) -> list[str]:
    if not root.is_dir():
        raise UsageError(f"{root}: expected a directory of shards, but it does not exist; correct data.root")
    found = sorted(
        str(path) for pattern in (f"{split}-*.tar", f"{split}.tar", f"{split}/*.tar") for path in root.glob(pattern)
    )
    if not found:
        beside = sorted(entry.name for entry in root.iterdir())
        raise UsageError(
            f"{root}: expected shards {split}-*.tar or {split}/*.tar, got {listed(beside) or 'an empty directory'}; name them by their split"
        )
    return found


def _read(shards: Sequence[str], spool: Any) -> tuple[pd.DataFrame, np.ndarray[Any, np.dtype[np.int64]]]:
    """The attributes of all samples, and where their images are in ``spool`` (None: they are not kept)."""
    import webdataset

    keys, rows, spans, at = [], [], [], 0
    try:
        for sample in webdataset.WebDataset(list(shards), shardshuffle=False, empty_check=False):
            key = f"{Path(sample['__url__']).stem}/{sample['__key__']}"
            image = next((sample[field] for field in IMAGES if field in sample), None)
            record = _record(sample.get("json"), key)
            if image is None:
                raise DataError(
                    f"{key}: expected an image ({', '.join(IMAGES)}), got {listed(n for n in sample if n[0] != '_')}; add one"
                )
            keys.append(key)
            rows.append(record)
            spans.append((at, len(image)))
            at += len(image)
            if spool is not None:
                spool.write(image)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # a damaged tar
        raise DataError(
            f"{Path(shards[0]).parent}: the shards cannot be read ({one_line(error)}); write them again"
        ) from None
    if not keys:
        raise DataError(f"{shards[0]}: expected samples, got none; write the shard again")
    return pd.DataFrame(rows, index=pd.Index(keys, dtype=object)).astype(object), np.array(spans, dtype=np.int64)


def _record(content: bytes | None, key: str) -> dict[str, Any]:
    try:
        found = json.loads(content or b"")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{key}: expected a JSON object of attributes, got {shown(content)}; add the field json")
    return {str(name): value for name, value in found.items() if isinstance(value, str | int | float) or value is None}


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not at the end of a forked worker
        Path(path).unlink(missing_ok=True)
