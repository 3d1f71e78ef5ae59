"""What every benchmark does with a result: one JSON line in a file, the figures on the screen, the machine beside them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def record(path: Path, found: Mapping[str, Any], **about: Any) -> None:
    """Append ``found`` and what is ``about`` it (command, machine, ...) to ``path`` as it comes, and print ``found``."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**found, **about}) + "\n")
    print(json.dumps(found), flush=True)


def mean_of_groups(rows: list[dict[str, Any]], method: str) -> float:
    """The mean over groups of the accuracy, and over seeds."""
    own = [row for row in rows if row["method"] == method]
    return float(np.mean([np.mean([g["accuracy"] for g in row["groups"].values() if g["n"]]) for row in own]))


def forget(path: Path, command: str) -> None:
    """Take the rows of `command` out of ``path``: what it writes now replaces what it wrote before."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line).get("command") != command]
        path.write_text("".join(kept), encoding="utf-8")


def cpu() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
