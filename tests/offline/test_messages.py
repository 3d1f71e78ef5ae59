"""The likeliest things that go wrong with shards, plans and runs, each said in one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from helpers import committing, damages, looked_at, tiny

from cfaug.causal.intervention import do, uniform
from cfaug.data import Attribute, Schema
from cfaug.errors import CfaugError, DataError, ShardError, StorageError, UsageError
from cfaug.offline import (
    Plan,
    PlanRow,
    ShardReader,
    balance_groups,
    encode_sample,
    generate,
    make_engine,
    make_plan,
    verify,
)
from cfaug.offline.commit import open_destination
from cfaug.offline.format import Sample
from cfaug.offline.inspect.contact_sheet import contact_sheet
from cfaug.offline.scan import scan
from cfaug.offline.write_shard import stage_shard

TAR, INDEX, MANIFEST = damages.NAME, damages.INDEX, "manifest.jsonl"


class Case(NamedTuple):
    name: str
    break_it: Callable[[Path], Any]
    call: Callable[[Path], Any]
    kind: type[CfaugError]
    fragment: str


def cut(name: str, by: int = 1) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-by])


def gone(name: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).unlink()


def written(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes()))


def nothing(place: Path) -> None:
    pass


def scanned(place: Path) -> None:
    list(scan(place / TAR))


def first_image(place: Path) -> None:
    ShardReader(place).image(0)


def of_format_2(lines: bytes) -> bytes:
    return b"".join(json.dumps({**json.loads(line), "format": 2}).encode() + b"\n" for line in lines.splitlines())


CASES = [
    Case("a cut tar", cut(TAR), ShardReader, ShardError, f"{TAR}: expected 10240 bytes, got 10239 (truncated?); generate"),
    Case("no tar", gone(TAR), ShardReader, ShardError, f"{TAR}: expected it, as it is in the manifest, got no such file; generate this"),
    Case("a cut index", cut(INDEX), ShardReader, ShardError, f"{TAR}: its index {INDEX}: expected "),
    Case("a changed index", written(INDEX, lambda b: b.replace(b"train", b"tra1n")), ShardReader, ShardError, f"got a different {INDEX}; generate this shard again"),
    Case("a changed manifest", written(MANIFEST, lambda b: b.replace(b'"count":3', b'"count":2')), ShardReader, ShardError, "restore it, or generate with --overwrite"),
    Case("a later format", written(MANIFEST, of_format_2), ShardReader, ShardError, "expected shard format 1, got 2; upgrade cfaug"),
    Case("a changed image", written(TAR, lambda b: b.replace(b"IDAT", b"IDAX", 1)), first_image, ShardError, f"{TAR}, sample 'train-000000000': expected the bytes the index vouches for, got different bytes; run cfaug verify"),
    Case("an empty manifest", written(MANIFEST, lambda b: b""), ShardReader, ShardError, "got an empty one; generate first"),
    Case("no manifest", gone(MANIFEST), ShardReader, ShardError, f"{MANIFEST} with committed shards, got none; generate first"),
    Case("no run to verify", gone(MANIFEST), verify, ShardError, "got none; give the directory of a cfaug run"),
    Case("no directory", nothing, lambda place: ShardReader(place / "typo"), ShardError, "there is no such directory; check the path"),
    Case("a file for a directory", nothing, lambda place: ShardReader(place / TAR), ShardError, TAR),
    Case("a place of no type", nothing, lambda place: ShardReader(3), UsageError, "shards: expected a path or a URL, got int"),  # type: ignore[arg-type]
    Case("an unknown protocol", nothing, lambda place: ShardReader("gopher-x://a/b"), UsageError, "Protocol not known"),
    Case("no tar", written(TAR, lambda b: b"<html>".ljust(len(b))), scanned, ShardError, "expected the header of a member"),
    Case("no file to scan", gone(TAR), scanned, ShardError, "cannot read"),
    Case("a cut tar to scan", cut(TAR), scanned, ShardError, "more zero bytes and the end, got fewer; generate this shard again"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_with_shards_is_one_line(case: Case, tmp_path: Path) -> None:
    damages.make(tmp_path, samples=3)
    case.break_it(tmp_path)
    with pytest.raises(case.kind) as caught:
        case.call(tmp_path)
    assert case.fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def engine(name: str, workers: int = 1, **options: Any) -> Callable[[], Any]:
    return lambda: make_engine(name, workers, options)


def staged(sample: Sample, name: str = TAR, image: str = "png") -> Callable[[], Any]:
    return lambda: stage_shard(Path("nowhere"), name, [sample], "p", "m", image=image)


SAMPLE = committing.samples(0)[0]
GREY = Sample(SAMPLE.key, SAMPLE.image[:, :, :1], SAMPLE.record)
HALF = Sample(SAMPLE.key, SAMPLE.image, {**SAMPLE.record, "source_key": "caf\udce9.png"})  # half a surrogate pair
COMMITTING = [
    (engine("k8s"), UsageError, "expected an engine among local, torchrun, slurm, submitit, ray, got 'k8s'"),
    (engine("torchrum"), UsageError, "did you mean torchrun?"),
    (engine("local", folder="x"), UsageError, "unknown option 'folder' of engine local; it takes no options"),
    (engine("local", -1), UsageError, "workers of 0 or more for engine local, got -1"),
    (engine("submitit", timeout_mins=1), UsageError, "unknown option 'timeout_mins' of engine submitit; did you mean timeout_min"),
    (engine("submitit", timeout_min=0), UsageError, "a whole number of 1 or more for option timeout_min"),
    (engine("submitit", mem_gb="8"), UsageError, "gigabytes above 0 for option mem_gb"),
    (engine("submitit", partition=3), UsageError, "a text for option partition"),
    (engine("submitit", cluster="kubernetes"), UsageError, "one of auto, local, debug, slurm for option cluster"),
    (engine("submitit", setup="module load cuda"), UsageError, "a list of shell commands for option setup"),
    (engine("ray", 0), UsageError, "workers of 1 or more for engine ray, got 0"),
    (engine("ray", num_gpu=1), UsageError, "unknown option 'num_gpu' of engine ray; did you mean num_gpus"),
    (engine("ray", num_cpus=-1), UsageError, "a number of 0 or more for option num_cpus"),
    (engine("ray", resources=["tpu"]), UsageError, "a mapping for option resources"),
    (engine("ray", address=""), UsageError, "an address such as auto or ray://host:10001"),
    (lambda: open_destination(""), UsageError, "empty text"),
    (lambda: open_destination("s3:/bucket/run"), UsageError, "write two slashes"),
    (lambda: open_destination("s3:///"), UsageError, "expected a bucket in the URL, got 's3:///'; write"),
    (lambda: open_destination("nothing://a"), UsageError, "cannot reach nothing://a"),
    (staged(SAMPLE, image="jpeg"), UsageError, "one of png, png-stored, webp, got 'jpeg'"),
    (staged(SAMPLE, name="../x.tar"), UsageError, "expected a shard name like cf-train-000000.tar, got '../x.tar'"),
    (lambda: encode_sample(GREY, "webp"), ShardError, "got a grey one; set generate.image=png"),
    (lambda: encode_sample(HALF), ShardError, f"sample '{SAMPLE.key}': its record"),
    (staged(SAMPLE), StorageError, f"cannot write {TAR} in nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "fragment"), COMMITTING, ids=[fragment[:40] for _, _, fragment in COMMITTING])
def test_what_cannot_be_written_is_one_line(call: Callable[[], Any], kind: type[Exception], fragment: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


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
    (old_plan, ShardError, "expected plan format 4, got 2; plan again, or use the cfaug that wrote it"),
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


@pytest.mark.parametrize(
    ("call", "error", "fragment"),
    [*PLANS, *GENERATE, *INSPECT],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_planned_or_made_is_one_line(
    call: Call, error: type[CfaugError], fragment: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        call(tmp_path)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
