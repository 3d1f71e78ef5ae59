"""A person's decisions as a criterion of the gate: a sample that somebody has called wrong is not written again.

A decision is about the pixels that the person saw. So it rejects an image with the same digest, and says nothing of what is drawn in its
place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfaug.data.files import expand
from cfaug.data.images import pixel_digest
from cfaug.errors import UsageError, one_line
from cfaug.offline.gate import Candidates, Floats

Decisions = dict[str, tuple[str, str, str | None]]
"""Sample key -> (digest of its pixels, "y", "n" or "relabel", the class that it shows)."""


def read_decisions(path: str | Path, data: str) -> Decisions:
    """The decisions of a file that the page of ``cfaug review`` has saved.

    Args:
        path: the file.
        data: digest of the data that the run is bound to.

    Raises:
        UsageError: no such file, not decisions, or those about other data.
    """
    try:
        content = json.loads(expand(path).read_text(encoding="utf-8"))
        found = {
            str(one["key"]): (str(one["digest"]), str(one["decision"]), one.get("label"))
            for one in content["decisions"]
        }
        about, version = content["data"], content["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: expected the decisions.json of `cfaug review`, got a file that cannot be read as that ({one_line(error, 80)}); save it again"
        ) from None
    if version != 1 or any(decision not in ("y", "n", "relabel") for _, decision, _ in found.values()):
        raise UsageError(
            f"{path}: expected decisions of format 1 (y, n, relabel), got others; save them again with this cfaug"
        )
    if about != data:
        raise UsageError(
            f"{path}: expected decisions about the images of this run (data {data[:12]}), got those about others ({str(about)[:12]}); review this run"
        )
    return found


@dataclass(frozen=True)
class Reviewed:
    """Rejects images that a person has called wrong, or of another class; ``rejected``: digests of their pixels."""

    rejected: frozenset[str]
    name = "a person's decision"

    def margins(self, seen: Candidates) -> Floats:
        """-1 for what was called wrong; NaN for everything else."""
        wrong = [pixel_digest(np.ascontiguousarray(image)) in self.rejected for image in seen.images]
        return np.where(wrong, -1.0, np.nan)


def reviewed(path: str | Path, data: str) -> Reviewed:
    """The criterion of a file of decisions; errors are those of :func:`read_decisions`."""
    return Reviewed(frozenset(digest for digest, decision, _ in read_decisions(path, data).values() if decision != "y"))
