"""What the structure map is worth: the demo's recipe with each kind, everything else the same.

    python benchmarks/structure.py OUT

Runs `cfaug run` three times (a few minutes each on two cores) and prints one JSON line a kind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cfaug.cli import main as cfaug
from cfaug.cli import shipped_recipes
from cfaug.judge.accuracy import read_results
from cfaug.judge.tables import summarise

KINDS = ("none", "gradient", "layout")
METHODS = ["erm", "counterfactuals_only", "cfaug", "oracle"]


def main(out: str) -> None:
    for kind in KINDS:
        run = Path(out) / kind
        code = cfaug(
            [
                "run",
                str(shipped_recipes()["demo"]),
                "--out",
                str(run),
                f"--decoder.structure={kind}",
                f"--train.methods={METHODS}",
                "--no-progress",
            ]
        )
        if code:
            sys.exit(code)
        figures = json.loads((run / "evaluation" / "figures.json").read_text())
        figures.pop("rows")
        table = {
            row.method: {"worst_group": row.worst, "average": row.average}
            for row in summarise(read_results(run / "results.jsonl"))
        }
        with (Path(out) / "structure.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"structure": kind, "methods": table, "counterfactuals": figures}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
