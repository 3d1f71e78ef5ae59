"""Every kind of damage is reported under the shard's and the sample's name, and nothing altered is ever delivered.

Small here; `benchmarks/damage.py` does all of it, and asks other readers too.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers import damages
from helpers.damages import Fault, Region

from cfaug.errors import ShardError
from cfaug.offline import write_shard
from cfaug.offline.format import shard_name
from cfaug.offline.read import ShardReader
from cfaug.offline.scan import scan
from cfaug.offline.verify import verify

Made = tuple[Path, bytes, list[Region]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    damages.make(tmp_path, samples=3)
    return tmp_path, (tmp_path / damages.NAME).read_bytes(), damages.regions(tmp_path)


def all_seen(made: Made, faults: Iterable[Fault], scanned: bool = True) -> None:
    truth = [damages.sample(i) for i in range(4)]
    count = 0
    for fault in faults:
        found = damages.judge(made[0], damages.NAME, fault, truth)
        count += 1
        said = (found["verify"], found["shard"], found["key"], found["altered"])
        assert said == (True, True, True, 0), (count, fault.kind, fault.key, found)
        assert found["scan"] or not scanned, (count, fault.kind, fault.key)
    assert count > 20
    assert verify(made[0]).ok  # and it was the faults


def test_truncation(made: Made) -> None:
    all_seen(made, damages.truncations(made[1], made[2], np.random.default_rng(0), random=40))


def test_every_byte_of_a_header(made: Made) -> None:
    first_two = made[2][:4]
    assert [region.kind for region in first_two].count("header") == 2
    flips = list(damages.flips(made[1], first_two, "header", np.random.default_rng(1)))
    zeroings = list(damages.zeroings(made[1], first_two, "header"))
    copy = made[0] / "copy" / damages.NAME
    copy.parent.mkdir()
    for fault in [*flips, *zeroings]:
        copy.write_bytes(fault.content)
        with pytest.raises(ShardError, match=re.escape(damages.NAME)):
            list(scan(copy))
    all_seen(made, flips[::16])  # the other readers compare whole headers: no byte is special to them
    all_seen(made, zeroings[::4])


def test_payload(made: Made) -> None:
    """Without a manifest nobody vouches for a record, so the scan may not see it."""
    all_seen(made, damages.flips(made[1], made[2], "payload", np.random.default_rng(2), random=60), scanned=False)


def test_a_flipped_image_is_seen_without_a_manifest(made: Made) -> None:
    images = [region for region in made[2] if region.kind == "payload"][1::2]
    all_seen(made, damages.flips(made[1], images, "payload", np.random.default_rng(3), random=40))


def test_padding_and_end(made: Made) -> None:
    rng = np.random.default_rng(4)
    all_seen(made, damages.flips(made[1], made[2], "padding", rng, random=40))
    all_seen(made, damages.flips(made[1], made[2], "end", rng, random=40))


@pytest.mark.parametrize("file", [damages.INDEX, "manifest.jsonl"])
def test_every_byte_of_index_and_manifest(made: Made, file: str) -> None:
    whole = (made[0] / file).read_bytes()
    truth = [damages.sample(i) for i in range(4)]
    everything = [Region("line", 0, len(whole), None)]
    for fault in islice(damages.flips(whole, everything, "line", np.random.default_rng(5)), 0, None, 5):
        found = damages.judge(made[0], file, fault, truth, scanning=False)
        assert (found["verify"], found["shard"], found["altered"]) == (True, True, 0), fault.content
    assert len(ShardReader(made[0])) == 4


def test_the_report_on_many_bad_shards_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand shards on a bad disk nobody reads two million lines, nor has the memory for them."""
    module = importlib.import_module("cfaug.offline.verify")
    for number in range(6):
        write_shard(tmp_path, shard_name("train", number), [damages.sample(3 * number + i) for i in range(3)], "p", "m")
        (tmp_path / shard_name("val", number)).write_bytes(b"")
    for i, row in enumerate(list(ShardReader(tmp_path).index)):
        if i % 3:
            with (tmp_path / shard_name("train", i // 3)).open("r+b") as tar:
                tar.seek(row.image.offset + 60)
                tar.write(b"xy")
    every = verify(tmp_path).problems
    assert len(every) == 6 * 3 + 6  # two samples and the sha256 of each shard; six files that nobody vouches for
    monkeypatch.setattr(module, "LISTED", 4)
    monkeypatch.setattr(module, "MOST", 2)
    first, second = shard_name("train", 0), shard_name("train", 1)
    told = verify(tmp_path).problems
    assert told[:2] == every[:2]
    assert told[2] == f"{first}: 1 more problems like these"
    assert second in told[3]
    assert told[4] == "and 14 more lines about shards like these"
    assert told[5:] == (*every[18:20], "and 4 more files that are not in the manifest")
