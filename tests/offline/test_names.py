"""The names on disk have one place, `format`, and what reads a name is the inverse of what makes it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cfaug.offline
from cfaug import config
from cfaug.data import datasets
from cfaug.errors import UsageError, one_line
from cfaug.offline import format, strategies
from cfaug.offline.format import (
    IMAGE_FIELDS,
    IMAGES,
    INDEX_NAME,
    MAX_SAMPLES,
    SPLITS,
    TAR_NAME,
    TRAIN,
    index_name,
    planned,
    shard_name,
)


@given(st.sampled_from(SPLITS), st.integers(0, 10**12))
def test_a_name_is_read_as_it_was_made(split: str, number: int) -> None:
    name = shard_name(split, number)
    assert TAR_NAME.fullmatch(name)
    assert INDEX_NAME.fullmatch(index_name(name))
    assert planned(name) == planned(index_name(name)) == (split, number)


@pytest.mark.parametrize(
    "name",
    [
        "cf-train-0000000.tar", "cf-train-00000.tar", "cf-other-000000.tar", "cf-train-000000.tar.partial", "x-000000.tar",
        "cf-train-٠٠٠٠٠٠.tar", "cf-train-000000.index.jsonl\n", "cf-train-000000.json", "cf-train--00001.tar", "",
    ],
)  # fmt: skip
def test_no_plan_makes_it(name: str) -> None:
    assert planned(name) is None


def test_no_other_module_spells_a_name() -> None:
    """Outside of docstrings and format.py."""
    names = (format.INDEX, format.PLAN_HEADER, format.MANIFEST, "cf-{", "cf-(", "cf-*")
    spelled = []
    for path in Path(str(cfaug.offline.__file__)).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                spelled += [(path.name, name) for name in names if name in node.value and path.name != "format.py"]
    assert spelled == []


def test_a_recipe_may_say_what_generation_knows() -> None:
    assert set(IMAGES.values()) == set(IMAGE_FIELDS)
    assert set(config.STRATEGIES) == {*strategies.STRATEGIES, "where_it_fails"}  # a stage makes shares of that
    config.GenerateConfig(samples_per_shard=MAX_SAMPLES)
    with pytest.raises(UsageError, match="samples_per_shard"):
        config.GenerateConfig(samples_per_shard=MAX_SAMPLES + 1)


def test_whatever_is_said_becomes_one_short_line() -> None:
    assert one_line("a\n  b\tc\r\n") == "a b c"
    assert len(one_line(ValueError("x" * 1000))) == 300
    assert (one_line(ValueError()), one_line("")) == ("ValueError", "")


def test_the_splits_of_data_sets_and_of_shards_are_the_same() -> None:
    """Offline's are on disk, by place in index.npy, so they are not taken from a data set's module."""
    assert SPLITS == datasets.SPLITS == ("train", "val", "test")
    assert TRAIN == "train"
