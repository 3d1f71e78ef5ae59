"""The law of the structure map: of two flat layers it shows the mask and nothing of the colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.decode.diffusion.structure import CHANNELS, structure_map


def layers(mask: np.ndarray, fore: list[float], back: list[float]) -> torch.Tensor:
    f, b = (torch.tensor(colour, dtype=torch.float64).view(1, -1, 1, 1) for colour in (fore, back))
    m = torch.from_numpy(mask)[None, None]
    return m * f + (1 - m) * b


@st.composite
def two_renders(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """One mask (soft edges, so that middle values differ), two pairs of colours of clear contrast."""
    height, width, channels = draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.sampled_from([1, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((height, width))
    mask.flat[rng.permutation(mask.size)[:2]] = [0, 1]
    pairs = []
    for _ in range(2):
        fore, back = rng.uniform(-1, 1, (2, channels))
        far = int(rng.integers(channels))
        fore[far], back[far] = rng.permutation([rng.uniform(-1, -0.5), rng.uniform(0.5, 1)])
        pairs.append(layers(mask, fore.tolist(), back.tolist()))
    return pairs[0], pairs[1]


@pytest.mark.parametrize("kind", ["layout", "gradient"])
@settings(max_examples=25, deadline=None)
@given(pair=two_renders())
def test_two_colourings_of_a_mask_have_one_map(kind: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = (structure_map(image, kind) for image in pair)
    # a mask whose pixels hardly differ fades out under the floor, and how far it fades does depend on the contrast
    clear = all(float((image.amax((2, 3)) - image.amin((2, 3))).norm()) > 0.5 for image in pair)
    if clear:
        assert float((first - second).abs().max()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(pair=two_renders())
def test_another_mask_has_another_map(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image = pair[0]
    assert float((structure_map(image, "layout") - structure_map(image.flip(3), "layout")).abs().max()) > 1e-6


@pytest.mark.parametrize("kind", list(CHANNELS))
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range(kind: str, channels: int) -> None:
    image = torch.rand(5, channels, 6, 9) * 2 - 1
    found = structure_map(image, kind)
    assert found.shape == (5, CHANNELS[kind], 6, 9)
    assert kind == "none" or (float(found.min()) >= -1 and float(found.max()) <= 1)


def test_flat_images_and_noise_below_the_floor_are_not_amplified() -> None:
    for kind in ("layout", "gradient"):
        assert float(structure_map(torch.full((2, 3, 4, 4), 0.3), kind).max()) == -1
        assert float(structure_map(0.3 + 1e-4 * torch.rand(2, 3, 4, 4), kind).max()) < -0.98


def test_rows_do_not_see_one_another() -> None:
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(structure_map(images, "layout")[2:3], structure_map(images[2:3], "layout"))
