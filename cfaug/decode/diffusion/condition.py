"""Attributes as the network reads them: the encoded parents, and for each parent a flag that says whether it is known.

A hidden value is a block of zeros with the flag at zero: the null token that partial labels, block dropout in training and
decoupled guidance share.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import torch

from cfaug.data import Schema
from cfaug.data.groups import quarter, quartiles
from cfaug.errors import UsageError


def check_depth(depth: Collection[str], parents: Collection[str]) -> None:
    """Raise UsageError when ``decoder.depth`` names an attribute that is not a parent of the image."""
    for name in depth:
        if name not in parents:
            raise UsageError(
                f"decoder.depth: expected parents of the image in the graph ({', '.join(parents)}), got {name!r}; remove it or add its edge"
            )


class Condition:
    """The encoding of the image's parents.

    Args:
        schema: the attributes.
        parents: names of the image's parents, at least one.

    Raises:
        UsageError: no parents, or one that is not in the schema.
    """

    def __init__(self, schema: Schema, parents: Collection[str]) -> None:
        for name in parents:
            schema[name]
        self.schema = schema
        self.parents = tuple(name for name in schema.names if name in set(parents))
        if not self.parents:
            raise UsageError(
                "expected at least one attribute that is a parent of the image, got none; add `attribute -> image` to the graph"
            )

    @property
    def width(self) -> int:
        """D + P: columns of the encoded parents and their presence flags."""
        return self.schema.width(self.parents) + len(self.parents)

    def encode(self, table: pd.DataFrame) -> torch.Tensor:
        """(B, D + P), float32: the encoded parents, then one presence flag per parent."""
        present = torch.tensor(table[list(self.parents)].notna().to_numpy(), dtype=torch.float32)
        encoded = self.schema.encode(table, self.parents, missing=True)
        return torch.cat([torch.from_numpy(encoded), present], dim=1)

    def blocks(self) -> list[torch.Tensor]:
        """For each parent, the columns that belong to it, its flag last."""
        width = self.schema.width(self.parents)
        blocks = self.schema.blocks(self.parents)
        return [
            torch.tensor([*range(blocks[name].start, blocks[name].stop), width + i])
            for i, name in enumerate(self.parents)
        ]

    def without(self, condition: torch.Tensor, hidden: Sequence[Collection[str]]) -> torch.Tensor:
        """A copy of ``condition`` (B, D + P) with the named parents of each row hidden."""
        result = condition.clone()
        for name, block in zip(self.parents, self.blocks(), strict=True):
            rows = torch.tensor([i for i, names in enumerate(hidden) if name in names], dtype=torch.int64)
            result[rows[:, None], block[None].to(rows.device)] = 0
        return result

    def cells(self, table: pd.DataFrame) -> torch.Tensor:
        """(B,): the number of rows of a canonical table with the same attributes (continuous ones by quartile, missing ones together)."""
        columns = {}
        for name in self.parents:
            column = table[name]
            if self.schema[name].kind == "continuous":
                known = column.to_numpy(dtype=float)
                column = pd.Series(quarter(known, quartiles(known)), index=table.index)
            columns[name] = column
        cells = pd.DataFrame(columns).groupby(list(columns), dropna=False).ngroup().to_numpy()
        return torch.from_numpy(np.bincount(cells)[cells].astype(np.float64))
