"""Fixtures that more than one room uses: one torch thread, the shared data, a tiny digits data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfaug.data import ArrayDataset, open_source

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """MNIST in torchvision's layout, or skip."""
    root = REPO.parent / "shared" / "data" / "mnist"
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST at {root}")
    return root


@pytest.fixture(scope="session")
def tiny_digits() -> ArrayDataset:
    """The first 64 coloured training digits, 8x8x3."""
    whole = open_source("digits", split="train")
    assert isinstance(whole, ArrayDataset)
    return ArrayDataset(whole.images[:64], whole.table.iloc[:64], whole.schema, "train")
