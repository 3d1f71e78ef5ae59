"""The gate: thresholds by false rejections, what each criterion rejects, rows that are drawn again, and the same bytes all the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.gated import ByPixel, Drawing
from hypothesis import given
from hypothesis import strategies as st

from cfaug.data.micro_batch import Sources
from cfaug.errors import CfaugError
from cfaug.offline import Plan, ShardReader, balance_groups, generate, verify
from cfaug.offline.criteria import NoTrace, Original, Plausible, Shown, Unchanged, correlation, threshold
from cfaug.offline.gate import Candidates, CriteriaGate
from cfaug.offline.progress import read_stats
from cfaug.offline.regenerate import regenerate


# --- thresholds
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=1, max_size=60),
    st.floats(0, 0.99),
)
def test_a_threshold_rejects_at_most_its_share_and_the_next_one_more(
    rows: list[tuple[float, float]], share: float
) -> None:
    scores, weights = np.array(rows).T
    t, total = threshold(scores, weights, share), weights.sum()
    assert t in scores
    assert weights[scores < t].sum() <= share * total * (1 + 1e-9)
    if (higher := scores[scores > t]).size:
        assert weights[scores < higher.min()].sum() > share * total * (1 - 1e-9)


def test_rare_images_count_as_their_weights_say() -> None:
    scores = np.r_[np.zeros(99), -1.0]
    assert threshold(scores, np.ones(100), 0.05) == 0  # one in a hundred may be rejected
    assert threshold(scores, np.r_[np.full(99, 0.5 / 99), 0.5], 0.05) == -1  # half of the weight may not


# --- criteria
def seen(
    images: Sequence[Any], records: Sequence[dict[str, Any]], sources: Sequence[Any] | None = None, masks: Any = None
) -> Candidates:
    pixels = torch.from_numpy(np.stack(images if sources is None else sources)).permute(0, 3, 1, 2)
    table = tiny.dataset(len(images)).table
    given_masks = None if masks is None else torch.from_numpy(np.stack(masks))[:, None].float() / 255
    batch = Sources(pixels.float() / 127.5 - 1, table, list(table.index), [0] * len(images), given_masks)
    return Candidates(images, records, batch)


def record(do: dict[str, str], **attributes: str) -> dict[str, Any]:
    return {"do": do, "attributes": {"digit": "0", **attributes, **do}}


FLAT = np.full((16, 16, 3), 100, np.uint8)


def test_a_reader_judges_what_was_done_and_what_was_not() -> None:
    asked: list[int] = []

    def read(batch: Candidates) -> Any:
        asked.append(len(batch))
        return np.log([[0.9, 0.05, 0.05], [0.02, 0.49, 0.49], [0.02, 0.49, 0.49], [0.02, 0.49, 0.49]])

    limits = {"blue": np.log(0.1), "green": np.log(0.1)}
    shown, kept = (Shown("colour", tiny.COLOURS, read, limits, intervened) for intervened in (True, False))
    batch = seen(
        [FLAT] * 4,
        [record({"colour": "blue"}), record({"colour": "blue"}), record({}, colour="blue"), record({"colour": "red"})],
    )
    first, second = shown.margins(batch), kept.margins(batch)
    assert (first[0] > 0, first[1] < 0) == (True, True)
    assert np.isnan(first[2:]).all()  # not intervened on; a value without a threshold
    assert np.isnan(second[[0, 1, 3]]).all()
    assert second[2] < 0
    assert asked == [4], "both ask one reader once"
    assert (shown.name, kept.name) == ("colour shown", "colour kept")


def test_what_is_read_as_stated_is_kept_however_sure_the_reader_was_of_real_images() -> None:
    sure = Shown(
        "colour", tiny.COLOURS, lambda _: np.log([[0.9, 0.05, 0.05], [0.4, 0.5, 0.1]]), {"blue": np.log(0.99)}, True
    )
    assert (sure.margins(seen([FLAT] * 2, [record({"colour": "blue"})] * 2)) < 0).tolist() == [False, True]


def object_mask() -> Any:
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    mask[3, 4:12] = 120  # a rim
    return mask


@pytest.mark.parametrize(
    ("do", "place", "wrong"),
    [
        ({"ground": "dark"}, np.s_[6:8, 6:8], True),  # in the object, though only the background was asked for
        ({"ground": "dark"}, np.s_[0:2, 0:2], False),
        ({"ground": "dark"}, np.s_[3, 4:12], False),  # in the rim, where both show
        ({"colour": "red"}, np.s_[0:2, 0:2], True),
        ({"colour": "red"}, np.s_[6:8, 6:8], False),
        ({}, np.s_[0, 0], True),  # nothing was asked for
    ],
)
def test_what_nobody_asked_for_must_not_change(do: dict[str, str], place: Any, wrong: bool) -> None:
    image = FLAT.copy()
    image[place] = 0
    regions = {"ground": "background", "colour": "object"}
    margins = Unchanged(regions, 1).margins(seen([image], [record(do)], [FLAT], [object_mask()]))
    assert (margins[0] < 0) == wrong


def test_what_pixels_prove_is_not_read() -> None:
    """A reader that reads everything wrong: it is asked only where the object may have changed."""
    wrong = Shown("digit", ("0", "1"), lambda seen: np.log([[0.01, 0.99]] * len(seen)), {"0": np.log(0.5)}, False)
    unchanged = Unchanged({"ground": "background", "colour": "object"}, 1)
    proven = dataclasses.replace(wrong, region="object", unchanged=unchanged)
    patched = FLAT.copy()
    patched[6:8, 6:8] = 0
    images, does = (
        [FLAT, patched, FLAT, FLAT],
        [{"ground": "dark"}, {"ground": "dark"}, {"colour": "red"}, {"thickness": "1"}],
    )
    batch = seen(images, [record(do) for do in does], [FLAT] * 4, [object_mask()] * 4)
    assert (wrong.margins(batch) < 0).all()
    assert (proven.margins(batch) < 0).tolist() == [False, True, True, True]


def test_what_differs_by_rounding_or_has_no_known_region_is_not_judged() -> None:
    regions = {"ground": "background"}
    rounded = seen([FLAT + 8], [record({"ground": "dark"})], [FLAT], [object_mask()])
    assert Unchanged(regions, 1).margins(rounded)[0] == 0
    nine = seen([FLAT + 9], [record({"ground": "dark"})], [FLAT], [object_mask()])
    assert Unchanged(regions, 1).margins(nine)[0] < 0
    unknown = seen(
        [FLAT + 90] * 2,
        [record({"colour": "red"}), record({"ground": "dark", "colour": "red"})],
        [FLAT] * 2,
        [object_mask()] * 2,
    )
    assert np.isnan(Unchanged(regions, 1).margins(unknown)).all()
    assert np.isnan(Unchanged(regions, 1).margins(seen([FLAT], [record({"ground": "dark"})]))).all()  # no mask


@pytest.mark.parametrize(
    ("place", "wrong"), [((5, 5), False), ((15, 3), False), ((3, 15), False), ((16, 15), True), ((28, 28), True)]
)
def test_a_mark_is_put_in_its_box(place: tuple[int, int], wrong: bool) -> None:
    """The box is the first 8 pixels either way, and a codec's block beside them; no mask is needed."""
    source = np.full((32, 32, 3), 100, np.uint8)
    image = source.copy()
    image[place] = 255
    boxes = {"marker": ((0.0, 0.0, 0.25, 0.25),)}
    batch = seen([image, source], [record({"marker": "L"})] * 2, [source] * 2)
    assert (Unchanged(boxes, 1).margins(batch) < 0).tolist() == [wrong, False]


def test_a_trace_of_the_old_background_is_found_where_there_is_structure() -> None:
    rng = np.random.default_rng(0)
    old, new = (rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(2))
    half = ((old.astype(int) + new) // 2).astype(np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[12:20, 12:20] = 255
    criterion = NoTrace(frozenset({"ground"}), 0.2)
    done = record({"ground": "dark"})
    margins = criterion.margins(seen([new, half, old], [done] * 3, [old] * 3, [mask] * 3))
    assert (margins < 0).tolist() == [False, True, True]
    assert np.isnan(criterion.margins(seen([old], [record({"colour": "red"})], [old], [mask])))[0]
    mask[2:26, 2:26] = 255
    new[:26, :26] = old[:26, :26]  # the object is the same, as it must be
    assert correlation(new, old, mask) < 0.2
    assert np.isnan(correlation(FLAT, FLAT, np.zeros((16, 16), np.uint8)))


def test_distances_reject_above_and_below() -> None:
    batch = seen([FLAT] * 2, [record({})] * 2)
    assert (Plausible(lambda _: np.array([1.0, 3.0]), 2.0).margins(batch) < 0).tolist() == [False, True]
    assert (Original(lambda _: np.array([1.0, 3.0]), 2.0).margins(batch) < 0).tolist() == [True, False]


@dataclass(frozen=True)
class Fixed:
    name: str
    values: tuple[float, ...]

    def margins(self, batch: Candidates) -> Any:
        return np.array(self.values[: len(batch)])


def test_a_gate_keeps_what_no_criterion_rejects_and_says_why() -> None:
    gate = CriteriaGate((Fixed("first", (1, -1, np.nan, -2)), Fixed("second", (0, 1, np.nan, -1))), "d")
    batch = seen([FLAT] * 4, [record({})] * 4)
    assert gate(batch.images, batch.records, batch.sources) == [True, "first", True, "first, second"]


# --- rows that are drawn again
PLAN = balance_groups(tiny.dataset().table, tiny.schema(), null_fraction=0.25, samples_per_shard=8)


def made(out: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"workers": 0, "batch_size": 5, "progress": False, "gate": ByPixel(), **options}
    model = settings.pop("model", Drawing(tiny.schema()))
    return generate(model, tiny.dataset(), PLAN, out, **settings)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated")
    made(out, log_to=out / "stats.jsonl")
    return out


def test_a_rejected_row_is_drawn_again_with_a_seed_of_its_own(gated: Path) -> None:
    reader, rows = ShardReader(gated), {row.key: row for row in PLAN}
    attempts = {}
    for i in range(len(reader)):
        found = reader.record(i)
        attempts[found["key"]] = found["quality"]["attempt"]
        attempt, row = found["quality"]["attempt"], rows[found["key"]]
        assert (found["seed"] == row.seed) == (attempt == 0)
        assert (found["source_key"] != row.source_key) == (attempt == 4), (
            "at last another source of the class stands in"
        )
        assert found["factual"]["digit"] == tiny.dataset().table.loc[row.source_key, "digit"]
        assert int(reader.image(i).astype(int).sum()) % 2
    assert set(attempts.values()) <= {0, 1, 2, 3, 4}
    assert {0, 1, 2} <= set(attempts.values())
    assert list(attempts) == [row.key for row in PLAN if row.key in attempts], "in the order of the plan"
    nulls = {row.key for row in PLAN if row.do.is_null}
    assert {attempts[key] for key in nulls & set(attempts)} == {0}, "another seed does not change a null intervention"


def test_what_fails_for_good_is_named_with_its_reason(gated: Path) -> None:
    kept = set(ShardReader(gated).keys)
    events = [json.loads(line) for line in (gated / "stats.jsonl").read_text().splitlines()]
    reasons = {
        key: why for event in events if event["event"] == "shard" for key, why in event.get("reasons", {}).items()
    }
    assert reasons == {row.key: "even" for row in PLAN if row.key not in kept}
    stats = read_stats(gated)
    assert stats is not None
    assert stats.reasons == {"even": len(reasons)} != {"even": 0}
    assert f"rejected by the gate: even {len(reasons)}" in str(stats)


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 1}])
def test_the_same_bytes_for_any_number_of_workers(gated: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    made(tmp_path, **options)
    assert tiny.digests(tmp_path) == tiny.digests(gated)
    assert verify(tmp_path, PLAN).ok


def test_drawn_again_samples_regenerate(gated: Path) -> None:
    found = regenerate(Drawing(tiny.schema()), tiny.dataset(), PLAN, gated, n=10**6, gate=ByPixel())
    assert found.ok, str(found)
    assert found.counts["samples"] == len(ShardReader(gated))


def test_a_model_that_draws_nothing_is_not_asked_again(gated: Path, tmp_path: Path) -> None:
    plain = made(tmp_path, model=tiny.model(), batch_size=8)
    reader = ShardReader(tmp_path)
    records, rows = [reader.record(i) for i in range(len(reader))], {row.key: row for row in PLAN}
    assert {found["quality"]["attempt"] for found in records} == {0, 4}
    digits = tiny.dataset().table["digit"]
    assert all(found["factual"]["digit"] == digits[rows[found["key"]].source_key] for found in records), (
        "of the same class"
    )
    assert plain.rejected > len(PLAN) - len(ShardReader(gated))


def test_without_retries_what_is_rejected_is_left_out(tmp_path: Path) -> None:
    plain = made(tmp_path, gate=ByPixel(0))
    assert plain.rejected > len(PLAN) / 4
    assert "attempt" not in ShardReader(tmp_path).record(0)["quality"]


def test_a_gate_that_rejects_everything_says_what_for(tmp_path: Path) -> None:
    nothing = CriteriaGate((Fixed("colour shown", (-1.0,) * 99),), "nothing")
    with pytest.raises(CfaugError, match=r"got all 8 rejected \(8 for: colour shown\); loosen it"):
        made(tmp_path, gate=nothing)


def test_a_plan_knows_what_the_gate_left_out(gated: Path) -> None:
    assert Plan(list(PLAN), samples_per_shard=8).missing({entry.name for entry in ShardReader(gated).manifest}) == []
