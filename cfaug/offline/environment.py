"""What the bytes of a shard depend on beside plan and model: it stands in the manifest, and a run is claimed with it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from PIL import features

from cfaug.data.datasets import AttributeDataset
from cfaug.data.images import Pixels
from cfaug.data.source_types import SOURCE_TYPES, TRAINED
from cfaug.errors import UsageError, near

Environment = dict[str, str | int]


def working_size_of(dataset: AttributeDataset) -> str | None:
    """The size to which a data set brings its images, and how ("224x224 crop", width first); None where they stay as they are."""
    size = getattr(dataset, "size", None)
    return None if size is None else f"{size[1]}x{size[0]} {dataset.fit}"  # type: ignore[attr-defined]


def stored_image(dataset: AttributeDataset, i: int, shown: Pixels | None = None) -> Pixels:
    """Image ``i`` before it was brought to a working size, as its digest is taken; ``shown``: ``dataset.image(i)``, where it is there."""
    if working_size_of(dataset) is not None:
        return dataset.original(i)  # type: ignore[attr-defined, no-any-return]
    return dataset.image(i) if shown is None else shown


def environment_of(
    model: Any, batch_size: int, image: str = "png", gate: Any | None = None, size: str | None = None
) -> Environment:
    """What the bytes depend on, beside plan and model: no path, no number of workers and no engine is among it."""
    versions = {name: importlib.metadata.version(name) for name in ("diffusers", "numpy", "pillow", "torch", "zuko")}
    codec = {"png": "zlib", "webp": "webp"}.get(image)  # stored PNGs need none
    device = str(getattr(model, "device", "cpu")).split(":")[0]
    canvas = canvas_of(model)
    return {
        **({} if canvas is None else {"canvas": f"{canvas[0]}x{canvas[1]}"}),
        **({} if gate is None else {"gate": gate.digest}),
        **({} if size is None else {"size": size}),
        "batch_size": batch_size,
        "image": image,
        "source_type": source_type_of(model),
        "threads": 1,
        "device": device,
        "dtype": str(getattr(model, "dtype", "float32")),
        **versions,
        **({} if codec is None else {codec: str(features.version(codec))}),
    }


def source_type_of(model: Any) -> str:
    """The digital source type that the model's images are marked with; that of generated media for models that do not say.

    UsageError for one that is not in the vocabulary.
    """
    found = str(getattr(getattr(model, "capabilities", None), "source_type", TRAINED))
    if found not in SOURCE_TYPES:
        raise UsageError(
            f"capabilities.source_type: expected a digital source type of IPTC, got {found!r}; {near(found, SOURCE_TYPES)}"
        )
    return found


def canvas_of(model: Any) -> tuple[int, int] | None:
    """(height, width) that the model wants its sources padded to; None where they all have one size."""
    canvas = getattr(model, "canvas", None)
    return None if canvas is None else (int(canvas[0]), int(canvas[1]))
