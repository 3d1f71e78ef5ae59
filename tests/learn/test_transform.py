"""RandomCounterfactual knows its images by their pixels, keeps their type, and counts in every worker."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.data.pixel_hashes import pixels_hash, sample_hash
from cfaug.errors import DataError
from cfaug.learn import RandomCounterfactual
from cfaug.learn.pixel_swap import SharedCounts, open_lookup
from cfaug.offline import write_shard
from cfaug.offline.read import ShardReader, SourceHashes

COUNTERFACTUALS, NULL = {1, 11}, 21  # what every pixel of a sample of these shards is


def drawn(image: Any) -> int:
    """The value of a constant image."""
    (value,) = np.unique(np.asarray(image)).tolist()
    return int(value)


@pytest.fixture(scope="module")
def shards(shards: Path, base: ArrayDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shards with the quick hashes of their sources; those without are what test_albumentations.py reads."""
    reader, samples = ShardReader(shards), []
    for i in range(len(reader)):
        image = base.image(i // 3)
        samples.append(replace(reader.sample(i), source=SourceHashes(sample_hash(image), pixels_hash(image))))
    directory = tmp_path_factory.mktemp("hashed")
    write_shard(directory, "cf-train-000000.tar", samples, "p" * 64, "m" * 64)
    return directory


class Strangers(Dataset[Any]):
    """Images of any size that no shards know."""

    def __init__(self, n: int, height: int = 8, width: int = 8) -> None:
        self.n, self.shape = n, (height, width, 3)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng([77, i]).integers(0, 255, self.shape, dtype=np.uint8))


class Transformed(Dataset[Any]):
    """The first `known` images are those of a base, the others strangers; all through one transform."""

    def __init__(self, base: Any, known: int, unknown: int, transform: Any) -> None:
        self.base, self.known, self.strangers, self.transform = base, known, Strangers(unknown), transform

    def __len__(self) -> int:
        return self.known + len(self.strangers)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = self.base[i][0] if i < self.known else self.strangers[i - self.known]
        made: torch.Tensor = self.transform(image)
        return made


def test_swaps_known_images_and_counts(base: ArrayDataset, shards: Path) -> None:
    swap = RandomCounterfactual(shards, p=1.0)
    # both counterfactuals, never the null sample
    assert {drawn(swap(base[0][0])) for _ in range(30)} == COUNTERFACTUALS
    stranger = Strangers(1)[0]
    assert swap(stranger) is stranger
    assert (swap.seen, swap.matched, swap.swapped) == (31, 30, 30)
    nulls = RandomCounterfactual(shards, p=0.0, null_p=1.0)
    assert {drawn(nulls(base[i][0])) for i in range(10)} == {NULL}
    untouched = RandomCounterfactual(shards, p=0.0)
    image = base[0][0]
    assert untouched(image) is image
    assert (untouched.matched, untouched.swapped) == (1, 0)


def test_samples_of_any_structure(base: ArrayDataset, shards: Path) -> None:
    pipeline = v2.Compose([RandomCounterfactual(shards, p=1.0), v2.Identity()])
    picture, label = base[0][0], torch.tensor(4)
    made, target = pipeline(picture, 7)
    assert (drawn(made) in COUNTERFACTUALS, target) == (True, 7)
    mask, boxes = tv_tensors.Mask(torch.ones(8, 8)), tv_tensors.BoundingBoxes([[0, 0, 3, 3]], format="XYXY", canvas_size=(8, 8))  # type: ignore[call-overload]  # fmt: skip
    nested = {"image": picture, "annotations": {"mask": mask, "boxes": boxes, "more": [label, "text"]}}
    out = pipeline(nested)
    assert drawn(out["image"]) in COUNTERFACTUALS
    assert out["annotations"]["mask"] is mask
    assert out["annotations"]["boxes"] is boxes
    assert out["annotations"]["more"] == [label, "text"]
    # plain tensors and arrays: the first that can be an image, the rest is left alone
    tensor, other = torch.from_numpy(base.image(0)).permute(2, 0, 1), torch.zeros(3, 8, 8)
    made, again = pipeline(tensor, other)
    assert drawn(made) in COUNTERFACTUALS
    assert again is other
    made, code = pipeline(base.image(0), label)
    assert (drawn(made) in COUNTERFACTUALS, code) == (True, label)
    depth = np.zeros((8, 8), np.float32)
    made, same = pipeline(base.image(0), depth)
    assert drawn(made) in COUNTERFACTUALS
    assert same is depth
    # an array beside an explicit image is a target
    array = np.zeros((2, 8, 8), np.uint8)
    assert pipeline(picture, array)[1] is array


def test_v1_compose_draws_from_torch_and_pickles(base: ArrayDataset, shards: Path) -> None:
    pipeline = v1.Compose([RandomCounterfactual(shards, p=0.5), v1.PILToTensor()])

    def run(steps: Any) -> list[int]:
        torch.manual_seed(3)
        return [int(steps(base[i][0]).sum()) for i in range(20)]

    assert run(pipeline) == run(pipeline) == run(pickle.loads(pickle.dumps(pipeline))) == run(copy.deepcopy(pipeline))
    swapped = sum(int(base.image(i).sum()) != s for i, s in enumerate(run(pipeline)))
    assert 3 < swapped < 17
    assert "p=0.5, null_p=0.0" in repr(pipeline)


def test_the_stream_does_not_depend_on_what_is_known(base: ArrayDataset, shards: Path) -> None:
    swap = RandomCounterfactual(shards, p=0.5)
    after = []
    for image in (base[0][0], Strangers(1)[0]):
        torch.manual_seed(1)
        swap(image)
        after.append(torch.rand(1).item())
    torch.manual_seed(1)
    torch.rand(2)
    assert after == [torch.rand(1).item()] * 2


@settings(max_examples=60, deadline=None)
@given(
    u=st.floats(0, 1, exclude_max=True), v=st.floats(0, 1, exclude_max=True), p=st.floats(0, 1), rest=st.floats(0, 1)
)
def test_the_rule(u: float, v: float, p: float, rest: float) -> None:
    null_p = (1 - p) * rest
    made = _LOOKUP.swap(_BASE[0][0], lambda _: (u, v), p, null_p)
    if u < p:
        assert drawn(made) == (1 if v < 0.5 else 11)
    elif u < p + null_p:
        assert drawn(made) == NULL
    else:
        assert made is None


_BASE = source()


@pytest.fixture(scope="module", autouse=True)
def _lookup(shards: Path) -> None:
    global _LOOKUP
    _LOOKUP = open_lookup(shards, 0.5, 0.5)


def test_a_refuted_proposal_is_an_unknown_image(
    base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ShardReader(shards).lookup(base[0][0])
    monkeypatch.setattr(ShardReader, "lookup", lambda self, image: known)  # every image has the grid of this one
    swap = RandomCounterfactual(shards, p=1.0)
    other = base[1][0]
    assert swap(other) is other
    assert (swap.seen, swap.matched, swap.swapped) == (1, 0, 0)
    assert drawn(swap(base[0][0])) in COUNTERFACTUALS


@pytest.mark.parametrize(
    ("workers", "start"), [(0, None), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)]
)
def test_counts_are_the_truth_in_every_worker(
    base: ArrayDataset, shards: Path, workers: int, start: str | None
) -> None:
    swap = RandomCounterfactual(shards, p=0.5)
    data = Transformed(base, N, 24, v2.Compose([swap, v2.PILToTensor()]))
    loader = DataLoader(
        data, batch_size=4, num_workers=workers, persistent_workers=workers > 0,
        multiprocessing_context=start,
    )  # fmt: skip
    images = torch.cat([batch for _ in range(2) for batch in loader])
    truth = sum(len(np.unique(image)) == 1 for image in images.numpy())
    assert (swap.seen, swap.matched, swap.swapped) == (128, 80, truth)
    assert 20 < truth < 60


def test_a_pickled_copy_counts_for_itself() -> None:
    counts = SharedCounts()
    counts.add(matched=True, swapped=False)
    copied = pickle.loads(pickle.dumps(counts))
    assert [copied.total(column) for column in range(3)] == [0, 0, 0]
    assert [counts.total(column) for column in range(3)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((8, 8), "other pixels: a flip, a turn by EXIF"), ((6, 5), "they are 5 x 6 pixels, the shards' sources 8 x 8")],
)
def test_warns_once_and_says_why(
    shards: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, int], reason: str
) -> None:
    swap = RandomCounterfactual(shards)
    for image in (Strangers(250, *shape)[i] for i in range(250)):
        swap(image)
    assert caplog.text.count("knew none of the first 100") == 1
    assert reason in caplog.text
    assert swap.seen == 250


def test_no_warning_once_one_matched(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    swap, elsewhere = RandomCounterfactual(shards), RandomCounterfactual(shards)
    swap(base[0][0])
    elsewhere.lookup.counts.add(matched=True, swapped=False)  # as another worker does
    for i in range(150):
        swap(Strangers(150)[i])
        elsewhere(Strangers(150)[i])
    assert not caplog.records


def test_workers_warn_once_together(shards: Path, tmp_path: Path) -> None:
    swap = RandomCounterfactual(shards)
    data = Transformed(None, 0, 300, v2.Compose([swap, v2.PILToTensor()]))
    handler = logging.FileHandler(tmp_path / "log")  # forked workers append to the same file
    logging.getLogger("cfaug.learn.pixel_swap").addHandler(handler)
    try:
        for _ in DataLoader(data, batch_size=10, num_workers=3, multiprocessing_context="fork"):
            pass
    finally:
        logging.getLogger("cfaug.learn.pixel_swap").removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text().count("knew none of the first 100") == 1
    assert (swap.seen, swap.matched) == (300, 0)


@pytest.mark.parametrize("mode", ["I", "I;16", "F", "LAB"])
def test_images_that_no_source_can_be_pass_through(shards: Path, mode: str) -> None:
    image = Image.new(mode, (8, 8))
    swap = RandomCounterfactual(shards, p=1.0)
    assert swap(image) is image
    assert (swap.seen, swap.matched) == (1, 0)


def test_a_sample_of_a_different_size_is_refused(make: Callable[..., Path], base: ArrayDataset) -> None:
    rng = np.random.default_rng(0)
    wide = ArrayDataset(rng.integers(0, 255, (N, 8, 9, 3), dtype=np.uint8), base.table, base.schema, "train")
    with pytest.raises(DataError, match="expected the size of its source, 9 x 8 pixels, got 8 x 8"):
        RandomCounterfactual(make(wide), p=1.0)(wide[0][0])
