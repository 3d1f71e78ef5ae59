"""Several mechanisms in one model: each changes its own attributes, one after the other in the graph's order.

    x_0 = x,   x_k = predict_k(abduct_k(x_(k-1), pa_(k-1)), pa_k)      pa_k: the attributes after the first k mechanisms

An image passes only through the mechanisms whose attributes are affected. Capabilities add up: a null intervention is exact where it
is exact in all, masks are needed where one needs them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from cfaug.data import Schema
from cfaug.data.files import expand, replace_file
from cfaug.data.micro_batch import Sources
from cfaug.data.source_types import strongest
from cfaug.decode import save_decoder
from cfaug.decode.mechanism import Capabilities, FitReport, ImageMechanism, differing
from cfaug.errors import UsageError


@dataclass(frozen=True)
class Part:
    """A mechanism and the attributes that it answers for."""

    mechanism: ImageMechanism
    attributes: tuple[str, ...]


class ComposedDecoder:
    """Mechanisms in their order.

    Args:
        parts: each attribute but the target in exactly one of them. All have one schema.

    Raises:
        UsageError: no parts, or an attribute in two.
    """

    kind = "composed"

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise UsageError(
                "expected mechanisms to compose, got none; give one for each attribute (decoder.mechanisms)"
            )
        named = [name for part in parts for name in part.attributes]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise UsageError(f"expected each attribute in one mechanism, got {twice[0]!r} in two; leave it in one")
        self.parts = tuple(parts)

    @property
    def schema(self) -> Schema:
        """The attributes, with statistics."""
        return self.parts[0].mechanism.schema

    @property
    def parents(self) -> tuple[str, ...]:
        """The image's parents: those of all mechanisms."""
        wanted = {name for part in self.parts for name in part.mechanism.parents}
        return tuple(name for name in self.schema.names if name in wanted)

    @property
    def capabilities(self) -> Capabilities:
        """What all of them need and promise together."""
        own = [part.mechanism.capabilities for part in self.parts]
        return Capabilities(
            "exact" if all(one.null == "exact" for one in own) else "round_trip",
            needs_masks=any(one.needs_masks for one in own),
            redraws_own_value=any(one.redraws_own_value for one in own),
            stochastic=any(one.stochastic for one in own),
            hides=frozenset().union(*(one.hides for one in own)),
            mixed_batches=all(one.mixed_batches for one in own),
            min_side=max(one.min_side for one in own),
            max_side=min(one.max_side for one in own),
            multiple=max(one.multiple for one in own),
            source_type=strongest(one.source_type for one in own),
        )

    @property
    def canvas(self) -> None:
        """All images have one size."""
        return None

    @property
    def device(self) -> str:
        """Where the mechanisms compute."""
        return ", ".join(dict.fromkeys(part.mechanism.device for part in self.parts))

    @property
    def dtype(self) -> str:
        """The arithmetic of each."""
        return "; ".join(part.mechanism.dtype for part in self.parts)

    @property
    def report(self) -> FitReport | None:
        """What training did, of the mechanism that was trained."""
        return next((part.mechanism.report for part in self.parts if part.mechanism.report is not None), None)

    def abduct(self, sources: Sources) -> Sources:
        """The sources themselves: a mechanism abducts from what the one before it has made."""
        return sources

    def predict(
        self,
        noise: Sources,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """Images of the sources under the attributes; rows that no attribute of a mechanism affects do not pass through it."""
        if affected is None:
            affected = differing(noise.table, attributes, [name for part in self.parts for name in part.attributes])
        images, table = noise.images.clone(), noise.table.copy()
        for part in self.parts:
            rows, names = [], []
            for i, all_names in enumerate(affected):
                own = {name for name in all_names if name in part.attributes}
                if not part.mechanism.capabilities.redraws_own_value:
                    own = {name for name in own if table[name].iloc[i] != attributes[name].iloc[i]}
                if own:
                    rows.append(i)
                    names.append(own)
            after = table.copy()
            after[list(part.attributes)] = attributes[list(part.attributes)].to_numpy()
            if rows:
                chosen = dataclasses.replace(
                    noise,
                    images=images[rows],
                    table=table.iloc[rows],
                    keys=[noise.keys[i] for i in rows],
                    seeds=[noise.seeds[i] for i in rows],
                    masks=None if noise.masks is None else noise.masks[rows],
                )
                made = part.mechanism.predict(part.mechanism.abduct(chosen), after.iloc[rows], names, strength)
                images[rows] = made.to(images.dtype)
            table = after
        return images

    @property
    def digest(self) -> str:
        """sha256 (hex) over the mechanisms and their attributes, in their order."""
        content = json.dumps([[part.mechanism.digest, list(part.attributes)] for part in self.parts])
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write each mechanism into ``part-0``, ``part-1``, ..., and ``decoder.json`` last."""
        directory = expand(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for i, part in enumerate(self.parts):
            part.mechanism.save(directory / f"part-{i}")
        content = {
            "format": save_decoder.FORMAT, "kind": self.kind, "digest": self.digest,
            "attributes": [list(part.attributes) for part in self.parts],
        }  # fmt: skip
        replace_file(directory / "decoder.json", json.dumps(content, indent=1).encode())
