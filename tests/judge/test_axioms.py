"""The axioms on a model whose every answer is known: image = colour level + noise, with a tunable decoding error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cfaug.causal import do
from cfaug.data import Attribute, Schema
from cfaug.errors import UsageError
from cfaug.judge.axioms import composition, counterfactuals, effectiveness, read_attributes, reversibility, worst_rows

LEVEL = {"dark": -0.4, "bright": 0.4}


class Toy:
    """predict adds ``error`` once a pass, so k null cycles are off by k * error."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.seeds: list[int] = []

    def abduct(self, images: torch.Tensor, attributes: pd.DataFrame, seed: Sequence[int]) -> Any:
        self.seeds += list(seed)
        level = torch.tensor([LEVEL.get(c, 0.0) for c in attributes["colour"]])[:, None, None, None]
        return images - level, attributes

    def act(self, interventions: Sequence[Any]) -> Any:
        toy = self

        class Acted:
            def predict(self, noise: Any) -> tuple[torch.Tensor, pd.DataFrame]:
                rest, table = noise[0], noise[1].copy()
                for i, intervention in enumerate(interventions):
                    for name, value in intervention.assignments.items():
                        table.iloc[i, table.columns.get_loc(name)] = value
                level = torch.tensor([LEVEL[c] for c in table["colour"]])[:, None, None, None]
                return rest + level + toy.error, table

        return Acted()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"digit": list("010101"), "colour": ["dark"] * 3 + ["bright"] * 3})


def test_composition_is_in_unit_range_and_grows_with_cycles(images: torch.Tensor, table: pd.DataFrame) -> None:
    assert composition(Toy(), images, table) == pytest.approx(np.zeros(6), abs=1e-7)
    assert composition(Toy(0.02), images, table) == pytest.approx(np.full(6, 0.01), abs=1e-6)
    assert composition(Toy(0.02), images, table, cycles=10) == pytest.approx(np.full(6, 0.1), abs=1e-6)
    with pytest.raises(UsageError, match="cycles"):
        composition(Toy(), images, table, cycles=0)


def test_reversibility_undoes_the_intervention(images: torch.Tensor, table: pd.DataFrame) -> None:
    flip = [do(colour="bright" if c == "dark" else "dark") for c in table["colour"]]
    assert reversibility(Toy(), images, table, flip) == pytest.approx(np.zeros(6), abs=1e-6)
    assert reversibility(Toy(0.02), images, table, flip) == pytest.approx(np.full(6, 0.02), abs=1e-6)


def test_effectiveness_and_preservation(images: torch.Tensor, table: pd.DataFrame) -> None:
    toy, flip = Toy(), [do(colour="bright")] * 6
    pictures, attributes = counterfactuals(toy, images - 0.4, table, flip, seed=10, batch=4)
    assert toy.seeds == [10, 11, 12, 13, 14, 15]  # a row's seed does not depend on the batch
    assert list(attributes["colour"]) == ["bright"] * 6
    schema = Schema([Attribute("digit", values=("0", "1")), Attribute("colour", values=("dark", "bright"))])

    def reads_colour(x: torch.Tensor) -> torch.Tensor:
        return (x.mean((1, 2, 3)) > 0).long()

    def says_zero(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), dtype=torch.int64)

    found = read_attributes({"colour": reads_colour, "digit": says_zero}, pictures, attributes, schema)
    assert found["digit"].tolist() == [True, False] * 3
    assert found["colour"].tolist() == [True] * 3 + [False] * 3 or found["colour"].all()
    with pytest.raises(UsageError, match="one code per image"):
        effectiveness(says_zero, pictures, [0])


def test_what_is_not_known_is_not_judged(images: torch.Tensor, table: pd.DataFrame) -> None:
    holes = table.assign(colour=[None, *table["colour"][1:]], digit=[*table["digit"][:-1], None])
    errors = reversibility(Toy(0.02), images, holes, [do(colour="bright")] * 6)
    assert np.isnan(errors).tolist() == [True] + [False] * 5  # nobody knows what to go back to
    assert errors[1:] == pytest.approx(np.full(5, 0.02), abs=1e-6)
    schema = Schema([Attribute("digit", values=("0", "1")), Attribute("colour", values=("dark", "bright"))])
    read = read_attributes({"digit": lambda x: torch.tensor([0, 1, 0, 1, 0, 1])}, images, holes, schema)
    assert read["digit"].tolist() == [True] * 5 + [False]


def test_worst_rows_and_refusals(images: torch.Tensor, table: pd.DataFrame) -> None:
    assert worst_rows(np.array([0.1, 0.5, 0.5, 0.2]), 3) == [1, 2, 3]
    with pytest.raises(UsageError, match="as many images as rows"):
        counterfactuals(Toy(), images, table, [do()])
