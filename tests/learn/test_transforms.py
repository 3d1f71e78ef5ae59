"""RandomCounterfactual knows its images by their pixels and keeps their type."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured_shards import source
from PIL import Image
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import DataError, UsageError
from cfaug.learn import RandomCounterfactual


def test_swaps_known_images_keeps_types_and_counts(base: ArrayDataset, shards: Path) -> None:
    swap = RandomCounterfactual(shards, p=1.0)
    picture = swap(base[0][0])
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    drawn = {int(np.asarray(RandomCounterfactual(shards, p=1.0)(base[0][0])).flat[0]) for _ in range(30)}
    assert drawn == {1, 11}  # both counterfactuals, never the null sample (21)
    tensor = torch.from_numpy(base.image(0)).permute(2, 0, 1)
    assert swap(tensor).dtype == torch.uint8
    assert swap(tensor).flatten()[0] in (1, 11)
    stranger = source(seed=5)[0][0]
    assert swap(stranger) is stranger
    assert (swap.seen, swap.matched) == (4, 3)


def test_composes_draws_from_torch_and_pickles(base: ArrayDataset, shards: Path) -> None:
    pipeline = v2.Compose([RandomCounterfactual(shards, p=0.5), v2.PILToTensor()])

    def run(steps: v2.Compose) -> list[int]:
        torch.manual_seed(3)
        return [int(steps(base[i][0]).sum()) for i in range(20)]

    assert run(pipeline) == run(pipeline) == run(pickle.loads(pickle.dumps(pipeline)))
    swapped = sum(np.asarray(base[i][0]).sum() != s for i, s in enumerate(run(pipeline)))
    assert 3 < swapped < 17


def test_p_zero_and_targets_pass_through(base: ArrayDataset, shards: Path) -> None:
    image, target = RandomCounterfactual(shards, p=0.0)(base[0][0], 7)
    assert np.array_equal(np.asarray(image), base.image(0))
    assert target == 7


def test_warns_once_when_it_knows_nothing(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    swap, stranger = RandomCounterfactual(shards), source(seed=5)[0][0]
    for _ in range(250):
        swap(stranger)
    assert caplog.text.count("knew none of the first 100") == 1


def test_refusals(shards: Path, make: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="p: expected"):
        RandomCounterfactual(shards, p=2)
    with pytest.raises(UsageError, match="expected an untransformed image"):
        RandomCounterfactual(shards)(torch.rand(3, 8, 8))
    with pytest.raises(DataError, match="split 'test'"):
        RandomCounterfactual(make(source("test")))
