"""The fixtures of this room: the small source, a decoder and a model trained on it, and a decoder to compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.small_decoder import Constant, fitted, small, source

from cfaug.data import ArrayDataset
from cfaug.decode import CounterfactualModel, DiffusionDecoder
from cfaug.decode.diffusion.network_input import Frame


@pytest.fixture(scope="session")
def data() -> ArrayDataset:
    return source()


@pytest.fixture(scope="session")
def decoder(data: ArrayDataset) -> DiffusionDecoder:
    return small(data)


@pytest.fixture(scope="session")
def model(data: ArrayDataset, decoder: DiffusionDecoder) -> CounterfactualModel:
    """shape <-> colour -> glow, all three parents of the image; its SCM is what takes long here."""
    return CounterfactualModel(fitted(data), decoder)


@pytest.fixture
def by_hand(data: ArrayDataset) -> Callable[..., DiffusionDecoder]:
    """A decoder whose network is :class:`Constant`."""

    def make(**settings: Any) -> DiffusionDecoder:
        chosen = {"sampler": "reversible_euler", "steps": 1, **settings}
        decoder = DiffusionDecoder(data.schema, ["shape", "colour", "glow"], **chosen)
        decoder._frame = Frame(3, (8, 8))
        decoder._net = Constant(data.schema.width(decoder.parents) + 3)  # type: ignore[assignment]
        return decoder

    return make
