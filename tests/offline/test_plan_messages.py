"""The messages of planning, generating and inspecting: a call that a user can get wrong, and what its one line says. One section per module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import looked_at, tiny

from cfaug.causal.intervention import do, uniform
from cfaug.data import Attribute, Schema
from cfaug.errors import CfaugError, DataError, ShardError, StorageError, UsageError
from cfaug.offline import Plan, PlanRow, balance_groups, generate, make_plan
from cfaug.offline.inspect.contact_sheet import contact_sheet

Call = Callable[[Path], Any]

# --- plan and strategies
SCHEMA = Schema(
    [Attribute("y"), Attribute("place"), Attribute("kind", "ordinal", ("low", "mid", "top")), Attribute("size", "continuous")],
    "y",
    ["place", "kind", "size"],
)  # fmt: skip
TABLE = pd.DataFrame(
    {"y": list("aabb"), "place": ["land", "sea", "sky", "sea"], "kind": ["low", "mid"] * 2, "size": [1.0, 2, 3, 4]},
    index=list("pqrs"),
)
JOINT = [{"place": "land", "share": 0.5}, {"place": "sea", "share": 0.5}]


def planned(strategy: str = "balance", table: pd.DataFrame = TABLE, **options: Any) -> Call:
    return lambda _: make_plan(strategy, table, options.pop("schema", SCHEMA), **options)


def rows(*given: PlanRow, **options: Any) -> Call:
    return lambda _: Plan(given, **options)


def row(key: str = "a", source: str = "s", act: Any = None, seed: Any = 0) -> PlanRow:
    return PlanRow(key, source, act or do(), seed, 0, 0)


def old_plan(path: Path) -> Plan:
    (path / "plan.json").write_text('{"format": 2}')
    return Plan.load(path)


PLANS = [
    (planned("blance"), UsageError, "expected a strategy among balance, uniform"),
    (planned("flip", joint=JOINT), UsageError, "expected joint with the strategy balance only, got flip"),
    (planned("every_value", per_image=2), UsageError, "expected per_image 1, got 2"),
    (planned("counterfactual_pairs", null_fraction=0.2), UsageError, "expected null_fraction 0.5, got 0.2"),
    (planned("counterfactual_pairs", samples_per_shard=1), UsageError, "samples_per_shard of 2 or more"),
    (planned(replicas=True), UsageError, "expected replicas of at least 1, got True"),
    (planned(per_image=0), UsageError, "expected per_image of at least 1, got 0"),
    (planned(null_fraction=1.0), UsageError, "expected null_fraction in [0, 1), got 1.0"),
    (planned(null_fraction="half"), UsageError, "expected null_fraction in [0, 1), got 'half'"),
    (planned(samples_per_shard=100_001), UsageError, "expected samples_per_shard of 1 to 100000, got 100001"),
    (planned(split="tset"), UsageError, "expected a split among train, val, test, got 'tset'"),
    (planned(seed=-1), UsageError, "got -1"),
    (planned(attributes=["y"]), UsageError, "expected attributes other than the target, got 'y'"),
    (planned(attributes=["plce"]), UsageError, "plce"),
    (planned(attributes=["place", "place"]), UsageError, "expected every attribute once, got place, place"),
    (planned(schema=Schema([Attribute("place")])), UsageError, "expected a schema with a target, got none"),
    (planned(table=TABLE.iloc[:0]), DataError, "expected sources in the train split, got an empty table"),
    (planned(table=pd.concat([TABLE, TABLE])), DataError, "'p' twice"),
    (
        planned(table=TABLE.assign(place=None)),
        DataError,
        "column 'place': expected",
    ),
    (planned("flip", table=TABLE.iloc[:1]), DataError, "flip: expected two values of 'kind' or more, got only 'low'"),
    (planned(joint=JOINT[:1]), UsageError, "expected the shares of joint to sum to 1, got 0.5"),
    (planned(joint=[{"place": "land", "share": -0.5}, JOINT[1]]), UsageError, "above 0 and up to 1, got -0.5"),
    (planned(joint=[{"place": "land", "share": float("nan")}]), UsageError, "above 0 and up to 1, got nan"),
    (planned(joint=[JOINT[0], JOINT[0]]), UsageError, "every cell of joint once"),
    (
        planned(joint=[{"place": "land", "kind": "low", "share": 0.5}, JOINT[1]]),
        UsageError,
        "to name place, kind, share",
    ),
    (planned(joint=[{"plcae": "land", "share": 1}]), UsageError, "unknown attribute 'plcae'; did you mean place"),
    (planned(joint=[{"kind": "top", "share": 1}]), DataError, "joint: no image shows kind=top"),
    (planned(joint=[{"size": 1.0, "share": 1}]), UsageError, "got the continuous 'size'"),
    (planned(joint=[{"y": "a", "share": 1}]), UsageError, "expected joint to name an attribute to intervene on, got y"),
    (planned(joint=[{"y": "a", "place": "sea", "share": 1}]), UsageError, "sum to 1 in class 'b', got 0"),
    (planned(joint=JOINT, attributes=["kind"]), UsageError, "joint: expected attributes among kind, got 'place'"),
    (planned(joint={"place": "sea", "share": 1}), UsageError, "expected joint as a list of cells"),
    (planned(joint=["place"]), UsageError, "expected a cell of joint as values with a share, got 'place'"),
    (rows(row("a.b")), UsageError, "expected unique keys of 1 to 95 characters A-Z a-z 0-9 _ -, got 'a.b'"),
    (rows(row("a" * 96)), UsageError, "expected unique keys"),
    (rows(row(), row()), UsageError, "expected unique keys"),
    (rows(row(seed=-1)), UsageError, "plan row 'a': expected seed in [0, 9007199254740992), got -1"),
    (rows(row(seed=1.5)), UsageError, "got 1.5"),
    (rows(row(act=do(a=uniform()))), UsageError, "plan row 'a': expected values in do, got do(a=uniform())"),
    (rows(row(), row("b"), samples_per_shard=1), UsageError, "shard 0: expected at most 1 rows, got 2"),
    (old_plan, ShardError, "expected plan format 3, got 2; plan again, or use the cfaug that wrote it"),
    (Plan.load, ShardError, "plan.json: cannot read it"),
]


# --- generate
def generated(plan: Plan | None = None, split: str = "train", **options: Any) -> Call:
    return lambda path: generate(
        tiny.model(), tiny.dataset(split=split), balance_groups(tiny.dataset().table, tiny.schema()) if plan is None else plan, path / "out",
        **{"workers": 0, "progress": False, **options},
    )  # fmt: skip


GENERATE = [
    (generated(split="test"), UsageError, "expected a data set of the plan's split 'train', got 'test'"),
    (generated(Plan([row(source="gone.png")])), DataError, "source 'gone.png' of the plan is not in the data set"),
    (generated(Plan([row("a", "source 0.png", do(colour="purple"))])), UsageError, "purple"),
    (generated(Plan([row("a", "source 0.png", do(shape="round"))])), UsageError, "shape"),
    (generated(Plan([row("a", "source 0.png", do(digit="1"))])), UsageError, "got 'digit': training keeps"),
    (generated(Plan([])), UsageError, "expected a plan with rows, got an empty one"),
    (generated(engine="lokal"), UsageError, "local"),
    (generated(workers=-1), UsageError, "workers"),
    (generated(batch_size=0), UsageError, "expected batch_size of at least 1, got 0"),
    (generated(retries=-1), UsageError, "expected retries of 0 or more, got -1"),
    (generated(gate=lambda *_: [True]), UsageError, "expected a gate with a digest"),
    (generated(image="jpeg"), UsageError, "jpeg"),
]


# --- inspect
def sheet(name: str = "sheet.png", rows: int = 1, shards: bool = True) -> Call:
    def call(path: Path) -> Path:
        if shards:
            looked_at.write(path, [[looked_at.sample(0, "s", {"digit": "1", "colour": "red"}, {"colour": "blue"})]])
        (path / "file").write_text("")
        return contact_sheet(path, path / name, rows)

    return call


INSPECT = [
    (sheet(rows=0), UsageError, "expected at least one row and one column, got 0 x 6"),
    (sheet("sheet.jpg"), UsageError, "expected a file name that ends in .png for the contact sheet, got 'sheet.jpg'"),
    (sheet("file/sheet.png"), StorageError, "cannot write"),
    (sheet(shards=False), ShardError, "generate first"),
]


@pytest.mark.parametrize(("call", "error", "fragment"), [*PLANS, *GENERATE, *INSPECT])
def test_one_line_says_what_is_wrong(call: Call, error: type[CfaugError], fragment: str, tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        call(tmp_path)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
