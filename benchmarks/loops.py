"""The loops of recipes/loops with and without cfaug: average and worst-group accuracy, seed by seed.

    python benchmarks/loops.py [--seeds 3] [--out benchmarks/results/loops.jsonl]

Each loop is a process of its own, with its default settings; the seed is that of the data and that of the training. A row
is one loop, one version (before, after; dfr for the one loop that has it), one seed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import cpu, record

HERE = Path(__file__).resolve().parent
LOOPS = HERE.parent / "recipes" / "loops"
TWO = "torch.distributed.run --standalone --nproc_per_node 2"
VERSIONS = ("before", "after", "dfr")
COMMAND = "python benchmarks/loops.py"


def call(loop: str, version: str, data: Path, seed: int) -> tuple[float, float]:
    """(average, worst-group accuracy) as the loop prints them."""
    launch = ["-m", *TWO.split()] if loop == "hf_accelerate" else []
    place = ["--data-path", str(data)] if loop == "torchvision_reference" else [str(data)]
    words = [sys.executable, *launch, str(LOOPS / loop / f"{version}.py"), *place, "--seed", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(data / "hf")}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    found = re.findall(r"^average (\S+) worst group (\S+)$", done.stdout, re.MULTILINE)
    return float(found[-1][0]), float(found[-1][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loops.jsonl")
    arguments = parser.parse_args()
    arguments.out.unlink(missing_ok=True)
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, str(LOOPS / "make_data.py"), folder, "--seed", str(seed)], check=True)
            for loop in sorted(path.parent.name for path in LOOPS.glob("*/before.py")):
                for version in (v for v in VERSIONS if (LOOPS / loop / f"{v}.py").exists()):
                    average, worst = call(loop, version, Path(folder), seed)
                    found = {"loop": loop, "version": version, "seed": seed, "average": average, "worst_group": worst}
                    record(arguments.out, found, command=COMMAND, cpu=cpu())


if __name__ == "__main__":
    main()
