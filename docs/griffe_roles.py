"""Docstrings for the site: roles of Sphinx become code, as the site's Markdown reads nothing else."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")


class Roles(griffe.Extension):  # type: ignore[misc, unused-ignore]  # no types where griffe is not installed
    """``:class:`~cfaug.stages.run.Run``` -> ```Run```."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", obj.docstring.value)
