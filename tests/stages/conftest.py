"""A folder of tiny images and one finished run of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny_run import folder, folder_recipe

from cfaug.cli import main


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data") / "birds")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, birds: Path) -> Path:
    return folder_recipe(tmp_path_factory.mktemp("recipe") / "birds.yaml", birds)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """The directory of a whole run; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "birds"
    assert main(["run", str(recipe), "--out", str(out), "--no-progress"]) == 0
    return out
