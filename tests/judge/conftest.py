"""Results rows of a made-up but complete run, and the report's data: what the tables and the page are fed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import CausalGraph
from cfaug.data import Attribute, Grouper, Schema
from cfaug.judge import result_row
from cfaug.judge.report import Axiom, Example, LossTable, ReportData

SKILL = {"erm": 0.1, "group_resampling": 0.35, "group_dro": 0.4, "null_control": 0.2, "cfaug": 0.75, "oracle": 0.97}


def table_of(n: int, seed: int, rho: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    digit = rng.integers(0, 5, n)
    columns = {"digit": digit.astype(str).astype(object)}
    for name, words in (("foreground", "red lime cyan pink white"), ("background", "navy black teal olive plum")):
        code = np.where(rng.random(n) < rho, digit, rng.integers(0, 5, n))
        columns[name] = np.array(words.split(), dtype=object)[code]
    return pd.DataFrame(columns, index=[f"image-{i}" for i in range(n)])


def schema() -> Schema:
    return Schema([Attribute(n) for n in ("digit", "foreground", "background")], "digit", ["foreground", "background"])


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    train, test = table_of(600, 0, 0.9), table_of(1500, 1, 0.0)
    grouper = Grouper.fit(train, schema())
    found = []
    targets = test["digit"].to_numpy()
    for method, skill in SKILL.items():
        for seed in (0, 1, 2):
            rng = np.random.default_rng([seed, len(method)])
            hard = np.isin(test["foreground"], ["red", "cyan"])
            right = rng.random(len(test)) < np.where(hard, skill, (1 + skill) / 2)
            found.append(
                result_row(
                    recipe="made-up",
                    method=method,
                    seed=seed,
                    targets=targets,
                    table=test,
                    grouper=grouper,
                    predictions=np.where(right, targets, "x"),
                    train_table=train,
                    train_seconds=3.2,
                    selection="worst-group validation accuracy",
                )
            )
    return found


@pytest.fixture(scope="session")
def report(rows: list[dict[str, Any]]) -> ReportData:
    rng = np.random.default_rng(0)

    def picture() -> np.ndarray:
        return rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)

    def example(note: str = "") -> Example:
        return Example(
            picture(), "digit=3, foreground=red", [picture() for _ in range(4)],
            [f"do(foreground={c})" for c in ("lime", "cyan", "pink", "white")], picture(), note,
        )  # fmt: skip

    return ReportData(
        title="Coloured digits: does counterfactual augmentation help the worst group?",
        introduction="1 200 handwritten digits of 8x8 pixels, coloured so that colour tells the digit in training.",
        rows=rows,
        target="digit",
        spurious=["foreground", "background"],
        grids={
            "A random draw": [example(), example()],
            "The worst reconstructions": [example("reconstruction error 0.081, the largest of 1 200")],
            "The predictor contradicts": [example("read as foreground=orange after do(foreground=lime)")],
        },
        confounding_before={"foreground": 0.83, "background": 0.79},
        confounding_after={"foreground": 0.11, "background": 0.09},
        graph=CausalGraph(
            "digit -> image; foreground -> image; background -> image; digit <-> foreground; digit <-> background"
        ),
        axioms=[
            Axiom(
                "composition, 1 cycle",
                "0.010",
                "mean L1 in [0, 1] between an image and its null intervention; 0 is exact",
            )
        ],
        losses=LossTable(
            measures=["average", "worst by foreground"],
            rows=[
                ("unconfounded images", "the ceiling", [0.908, 0.742]),
                ("their reconstructions", "null interventions", [0.907, 0.729]),
            ],
            losses=[("codec loss", "what the decoder costs", [(0.001, -0.004, 0.006), (0.013, 0.002, 0.024)])],
            images=6000,
            seeds=3,
        ),
        leaks=[
            Axiom("original foreground", "20.0 %", "from counterfactuals of unconfounded sources (n 667); chance 10 %")
        ],
        notes=["A reader of attributes <cannot> see what a classifier sees & uses."],
        run={"command": "cfaug demo", "seeds": "0, 1, 2"},
    )
