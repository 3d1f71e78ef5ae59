"""The same bytes: workers 1, 2, 3 x engines local, ray, torchrun x shuffled order of shards x a restart after SIGKILL.

    python benchmarks/same_bytes.py OUT            ten minutes on two cores; one line in OUT/same_bytes.jsonl

A real model (the demo's recipe, ten training steps) generates one plan of 12 shards in every way; the sha256 of every tar
and index, and the sorted manifest, are compared with those of one process. A restart: the run gets SIGKILL after its third
shard and is started again with the same engine. Shuffled: the engine gets the shards in another order.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from rows import cpu, record

from cfaug.config import load_recipe
from cfaug.decode import CounterfactualModel
from cfaug.offline import Plan, generate
from cfaug.offline.engines import Outcome, make_engine
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages import fit, open_run, plan
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.gate import make_gate

HERE = Path(__file__).resolve()
SETTINGS = [
    "--decoder.max_steps=10", "--plan.per_image=1", "--plan.null_fraction=0.25",
    "--generate.samples_per_shard=134", "--generate.batch_size=20",
]  # fmt: skip
ENGINES, WORKERS = ("local", "ray", "torchrun"), (1, 2, 3)


class Shuffled:
    """An engine that gets its shards in another order."""

    def __init__(self, name: str, workers: int, options: Any = None) -> None:
        self.engine = make_engine(name, workers, options)
        self.shared = self.engine.shared

    def map(self, work: Callable[[int], Any], shards: Sequence[int]) -> Generator[Outcome[Any], None, None]:
        order = list(shards)
        random.Random(len(order)).shuffle(order)
        return self.engine.map(work, order)


def child(run: Path, out: Path, engine: str, workers: int, shuffled: bool, gated: bool) -> None:
    """One process of a generation; prints a line a shard."""
    if shuffled:
        module: Any = sys.modules["cfaug.offline.generate"]
        module.make_engine = Shuffled
    settings = [*SETTINGS, f"--generate.engine={engine}", f"--generate.workers={workers}"]
    recipe = load_recipe(shipped_recipes()["demo"], settings)
    model, inputs = CounterfactualModel.load(run / "model"), open_inputs(recipe, progress=False, fitted=True)
    if gated:
        recipe = dataclasses.replace(recipe, gate=dataclasses.replace(recipe.gate, enabled=True))
    options = {"num_cpus": 0.5} if engine == "ray" else None  # three actors on two cores
    generate(
        model, inputs.train, Plan.load(run / "plan"), out, engine=engine, workers=workers, batch_size=20,
        progress=False, options=options, gate=make_gate(recipe, inputs, model, run) if gated else None,
    )  # fmt: skip


def digests(out: Path) -> dict[str, str]:
    """sha256 of every tar and index; the manifest's rows sorted, since workers may commit in any order."""
    shards = out / "shards"
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards.glob("cf-*")}
    lines = sorted((shards / "manifest.jsonl").read_bytes().splitlines())
    return {**found, "manifest": hashlib.sha256(b"\n".join(lines)).hexdigest()}


def run_once(run: Path, out: Path, engine: str, workers: int, shuffled: bool, restart: bool, gated: bool) -> None:
    arguments = [
        str(HERE),
        str(out),
        *(["--gate"] * gated),
        "--child",
        str(run),
        engine,
        str(workers),
        str(int(shuffled)),
    ]
    start = [sys.executable, *arguments]
    if engine == "torchrun":
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={workers}",
            "--standalone",
            *arguments,
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if restart:
        process = subprocess.Popen(
            start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(start, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine}, {workers} workers: exit code {done.returncode}\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--gate", action="store_true", help="with the demo's gate, whose readers are trained first")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--child", nargs=4, metavar=("RUN", "ENGINE", "WORKERS", "SHUFFLED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run, engine, workers, shuffled = given.child
        child(Path(run), given.out, engine, int(workers), shuffled == "1", given.gate)
        return
    run = given.out / "run"
    shutil.rmtree(given.out, ignore_errors=True)
    with open_run(load_recipe(shipped_recipes()["demo"], SETTINGS), run, progress=False) as opened:
        fit(opened)
        plan(opened)
    run_once(run, given.out / "reference", "local", 0, False, False, given.gate)
    truth = digests(given.out / "reference")
    compared, different, started = 0, [], time.monotonic()
    for engine in given.engines:
        for workers in WORKERS:
            for shuffled, restart in ((False, False), (True, False), (False, True), (True, True)):
                way = f"{engine} x {workers}" + ", shuffled" * shuffled + ", restarted" * restart
                out = given.out / "way"
                shutil.rmtree(out, ignore_errors=True)
                run_once(run, out, engine, workers, shuffled, restart, given.gate)
                same = digests(out) == truth
                compared += 1
                different += [] if same else [way]
                print(f"{way}: {'the same' if same else 'DIFFERENT'}", flush=True)
    found = {
        "what": "same_bytes",
        **({"gate": True} if given.gate else {}),
        "engines": list(given.engines),
        "ways": compared,
        "different": different,
        "files": len(truth) - 1,
    }
    record(
        given.out / "same_bytes.jsonl", found, command=f"python benchmarks/same_bytes.py OUT{' --gate' * given.gate}", cpu=cpu(),
        seconds=round(time.monotonic() - started),
    )  # fmt: skip
    if different:
        raise SystemExit(f"expected the same bytes, found others in {', '.join(different)}")


if __name__ == "__main__":
    main()
