"""The fixtures of this room: the small source, a decoder and a model trained on it, and a decoder to compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from small_decoder import GRAPH, Constant, small, source

from cfaug.causal import SCM, CausalGraph
from cfaug.data import ArrayDataset
from cfaug.decode import CounterfactualModel, DiffusionDecoder


@pytest.fixture(scope="session")
def data() -> ArrayDataset:
    return source()


@pytest.fixture(scope="session")
def decoder(data: ArrayDataset) -> DiffusionDecoder:
    return small(data)


@pytest.fixture(scope="session")
def model(data: ArrayDataset, decoder: DiffusionDecoder) -> CounterfactualModel:
    return CounterfactualModel(SCM(CausalGraph(GRAPH), data.schema).fit(data.table, seed=0), decoder)


@pytest.fixture
def by_hand(data: ArrayDataset) -> Callable[..., DiffusionDecoder]:
    """A decoder whose network is :class:`Constant`."""

    def make(**settings: Any) -> DiffusionDecoder:
        decoder = DiffusionDecoder(data.schema, ["shape", "colour", "glow"], **settings)
        decoder.image_channels = 3
        decoder._net = Constant(data.schema.width(decoder.parents) + 3)  # type: ignore[assignment]
        return decoder

    return make
