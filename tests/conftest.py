"""Fixtures that more than one room uses: one torch thread, seeded generators, the shared data, a tiny digits data set."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_run import folder, folder_recipe
from hypothesis import settings

from cfaug.cli import main
from cfaug.data import ArrayDataset, open_source

REPO = Path(__file__).resolve().parents[1]

# The same examples every time: a red run is about the change. `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers alone, in the whole suite, and on whichever worker it lands."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # of the CPU: manual_seed would queue a call for CUDA in every test


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """MNIST in torchvision's layout, or skip."""
    root = REPO.parent / "shared" / "data" / "mnist"
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST at {root}")
    return root


@pytest.fixture(scope="module")
def narrow_classifier() -> Iterator[None]:
    """``small_cnn`` with a quarter of its channels: enough for painted shapes, at a quarter of the time."""
    from cfaug.train import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "SmallCNN", partial(models.SmallCNN, width=8))
        yield


@pytest.fixture(scope="session")
def tiny_digits() -> ArrayDataset:
    """The first 64 coloured training digits, 8x8x3."""
    whole = open_source("digits", split="train")
    assert isinstance(whole, ArrayDataset)
    return ArrayDataset(whole.images[:64], whole.table.iloc[:64], whole.schema, "train")


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 tiny images; not to be changed."""
    return folder(tmp_path_factory.mktemp("data") / "birds")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, birds: Path) -> Path:
    """A recipe of seconds for ``birds``."""
    return folder_recipe(tmp_path_factory.mktemp("recipe") / "birds.yaml", birds)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """The directory of a whole run of ``recipe``; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "birds"
    assert main(["run", str(recipe), "--out", str(out), "--no-progress"]) == 0
    return out
