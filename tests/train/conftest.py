"""The fixtures of this room: a small source and its shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.coloured_shards import source, write

from cfaug.data import ArrayDataset


@pytest.fixture(scope="session")
def base() -> ArrayDataset:
    return source()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, base: ArrayDataset) -> Path:
    return write(tmp_path_factory.mktemp("shards"), base)
