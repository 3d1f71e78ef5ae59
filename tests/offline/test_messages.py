"""The likeliest things that go wrong with shards, each said in one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import committing, damages

from cfaug.errors import CfaugError, ShardError, StorageError, UsageError
from cfaug.offline import ShardReader, encode_sample, make_engine, verify
from cfaug.offline.commit import open_destination
from cfaug.offline.format import Sample
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
    Case("a cut tar", cut(TAR), ShardReader, ShardError, f"{TAR}: expected 10240 bytes, got 10239 (truncated?): generate"),
    Case("no tar", gone(TAR), ShardReader, ShardError, f"{TAR}: in the manifest, but not there: generate it again"),
    Case("a cut index", cut(INDEX), ShardReader, ShardError, f"{TAR}: its index {INDEX}: expected "),
    Case("a changed index", written(INDEX, lambda b: b.replace(b"train", b"tra1n")), ShardReader, ShardError, "is not the one in"),
    Case("a changed manifest", written(MANIFEST, lambda b: b.replace(b'"count":3', b'"count":2')), ShardReader, ShardError, "restore it, or generate with --overwrite"),
    Case("a later format", written(MANIFEST, of_format_2), ShardReader, ShardError, "shard format 2, this cfaug reads 1: upgrade cfaug"),
    Case("a changed image", written(TAR, lambda b: b.replace(b"IDAT", b"IDAX", 1)), first_image, ShardError, f"{TAR}, sample 'train-000000000': expected the bytes the index vouches for, got other bytes: run cfaug verify"),
    Case("an empty manifest", written(MANIFEST, lambda b: b""), ShardReader, ShardError, "got an empty one: generate first"),
    Case("no manifest", gone(MANIFEST), ShardReader, ShardError, f"{MANIFEST} with committed shards, got none: generate first"),
    Case("no run to verify", gone(MANIFEST), verify, ShardError, "got none: is this a cfaug run"),
    Case("no directory", nothing, lambda place: ShardReader(place / "typo"), ShardError, "there is no such directory: check the path"),
    Case("a file for a directory", nothing, lambda place: ShardReader(place / TAR), ShardError, TAR),
    Case("a place of no type", nothing, lambda place: ShardReader(3), UsageError, "shards: expected a path or a URL, got int"),  # type: ignore[arg-type]
    Case("an unknown protocol", nothing, lambda place: ShardReader("gopher-x://a/b"), UsageError, "Protocol not known"),
    Case("no tar", written(TAR, lambda b: b"<html>".ljust(len(b))), scanned, ShardError, "expected the header of a member"),
    Case("no file to scan", gone(TAR), scanned, ShardError, "cannot read"),
    Case("a cut tar to scan", cut(TAR, 2048), scanned, ShardError, "more zero bytes and the end, got fewer: generate this shard again"),
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
    (lambda: open_destination("s3:/bucket/run"), UsageError, "a URL has two slashes"),
    (lambda: open_destination("s3:///"), UsageError, "expected a bucket"),
    (lambda: open_destination("nothing://a"), UsageError, "cannot reach nothing://a"),
    (staged(SAMPLE, image="jpeg"), UsageError, "one of png, png-stored, webp, got 'jpeg'"),
    (staged(SAMPLE, name="../x.tar"), UsageError, "expected a shard name like cf-train-000000.tar, got '../x.tar'"),
    (lambda: encode_sample(GREY, "webp"), ShardError, "got a grey one: set generate.image=png"),
    (lambda: encode_sample(HALF), ShardError, f"sample '{SAMPLE.key}': its record"),
    (staged(SAMPLE), StorageError, f"cannot write {TAR} in nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "fragment"), COMMITTING, ids=[fragment[:40] for _, _, fragment in COMMITTING])
def test_what_cannot_be_written_is_one_line(call: Callable[[], Any], kind: type[Exception], fragment: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
