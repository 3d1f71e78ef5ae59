"""Two workers against one, beside what two bare torch processes reach over one on the same machine in the same minutes.

    python benchmarks/scaling.py OUT --rounds 3            about ten minutes on two quiet cores; one line in OUT/scaling.jsonl

Bare: a process of one thread that abducts, acts and predicts the plan's micro-batches from memory and writes nothing; one
such process, then two at once. Ours: `generate` with one and with two workers, images encoded, written, fsynced, committed.
Start-up (imports, the model) is left out on both sides: images are counted between the first second in which every process
delivers and the moment when the first one stops. Rounds alternate, the medians are reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
from datetime import datetime
from pathlib import Path

import numpy as np
from rows import cpu, record

from cfaug.config import load_recipe
from cfaug.data import AttributeDataset
from cfaug.data.images import to_float
from cfaug.decode import CounterfactualModel
from cfaug.offline import Plan, generate
from cfaug.offline.commit import open_destination
from cfaug.offline.make_shard import ShardWork
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages import fit, open_run
from cfaug.stages import plan as make_plan
from cfaug.stages.checked_inputs import open_inputs

SETTINGS = ["--decoder.max_steps=10", "--generate.samples_per_shard=400"]
BATCH, SECONDS = 100, 20.0


def bare(run: Path, settings: list[str], queue: multiprocessing.Queue[tuple[float, int]], seconds: float) -> None:
    """Micro-batches from memory through the model, for `seconds`; puts (time, images) of each on the queue."""
    import torch

    torch.set_num_threads(1)
    data = open_inputs(load_recipe(shipped_recipes()["demo"], settings), progress=False, fitted=True).train
    plan, model = Plan.load(run / "plan"), CounterfactualModel.load(run / "model")
    work = ShardWork(model, data, plan, open_destination(run / "nowhere"), BATCH, {})
    rows = plan.rows_of(0)[:BATCH]
    places = [work.positions[row.source_key] for row in rows]
    images = to_float(torch.from_numpy(np.stack([data.image(place) for place in places])).permute(0, 3, 1, 2))
    table = model.schema.canonical(data.table.iloc[places])
    table.index = [row.key for row in rows]
    seeds, acts = [row.seed for row in rows], [row.do for row in rows]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with torch.inference_mode():
            model.act(acts).predict(model.abduct(images.contiguous(), table, seed=seeds))
        queue.put((time.monotonic(), BATCH))
    queue.put((0.0, 0))


def bare_rate(run: Path, settings: list[str], processes: int, seconds: float) -> float:
    """Images a second of all processes together, while all of them run."""
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue() for _ in range(processes)]
    started = [context.Process(target=bare, args=(run, settings, queue, seconds)) for queue in queues]
    for process in started:
        process.start()
    events = []
    for queue in queues:
        mine = []
        while (event := queue.get())[1]:
            mine.append(event)
        events.append(mine)
    for process in started:
        process.join()
    return rate(events)


def rate(events: list[list[tuple[float, int]]]) -> float:
    """Images a second between the time when all deliver and the time when the first one stops."""
    since = max(mine[0][0] for mine in events)
    until = min(mine[-1][0] for mine in events)
    return sum(n for mine in events for when, n in mine if since < when <= until) / (until - since)


def our_rate(run: Path, data: AttributeDataset, out: Path, workers: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    log = out / "stats.jsonl"
    generate(
        CounterfactualModel.load(run / "model"), data, Plan.load(run / "plan"), out, workers=workers, batch_size=BATCH, progress=False,
        log_to=log,
    )  # fmt: skip
    by_worker: dict[str, list[tuple[float, int]]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "shard":
            when = datetime.fromisoformat(event["time"]).timestamp()
            by_worker.setdefault(event["worker"], []).append((when, event["images"]))
    return rate(list(by_worker.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-image", type=int, default=40, help="interventions a source; 1 200 sources")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = [*SETTINGS, f"--plan.per_image={given.per_image}", "--plan.null_fraction=0.2"]
    run = given.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    with open_run(load_recipe(shipped_recipes()["demo"], settings), run, progress=False) as opened:
        fit(opened)
        planned, data = len(make_plan(opened)), opened.inputs.train
    rates: dict[str, list[float]] = {name: [] for name in ("bare1", "bare2", "ours1", "ours2")}
    for _ in range(given.rounds):
        rates["bare1"].append(bare_rate(run, settings, 1, SECONDS))
        rates["ours1"].append(our_rate(run, data, given.out / "generated", 1))
        rates["bare2"].append(bare_rate(run, settings, 2, SECONDS))
        rates["ours2"].append(our_rate(run, data, given.out / "generated", 2))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    found = {
        "what": "scaling",
        "images": planned,
        "bare_two_over_one": round(middle["bare2"] / middle["bare1"], 3),
        "ours_two_over_one": round(middle["ours2"] / middle["ours1"], 3),
        "ours_over_bare_speedup": round(middle["ours2"] / middle["ours1"] / (middle["bare2"] / middle["bare1"]), 3),
        "ours_over_bare_rate_one": round(middle["ours1"] / middle["bare1"], 3),
        "images_per_second": {name: [round(one, 1) for one in found] for name, found in rates.items()},
    }
    command = f"python benchmarks/scaling.py OUT --rounds {given.rounds}"
    record(given.out / "scaling.jsonl", found, command=command, cpu=cpu(), cores=os.cpu_count())
    shutil.rmtree(given.out / "generated", ignore_errors=True)


if __name__ == "__main__":
    main()
