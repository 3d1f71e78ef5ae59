"""The decoder on double-colored MNIST, rho = 0.95, 20 000 training images, official test digits.

    python benchmarks/decoder.py goals   OUT --root MNIST     one run of the shipped recipe, judged: about an hour on two cores
    python benchmarks/decoder.py leaks   OUT --root MNIST     what probes can still read off its counterfactuals
    python benchmarks/decoder.py speed   OUT --root MNIST     of the decoder in OUT/run
    python benchmarks/decoder.py solvers OUT --root MNIST     quality against network evaluations, the same decoder
    python benchmarks/decoder.py time    OUT --root MNIST     quality against training time: one training, judged on its way
    python benchmarks/decoder.py designs OUT --root MNIST     what stands beside the noise: three decoders, 800 steps each

Every result is one JSON line in OUT/decoder.jsonl with the machine and the command. The data set's counterfactuals are known (the
same mask in other colours), so `truth_l1` is the mean absolute error, in [0, 1], against the true counterfactual.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rows import cpu, record

from cfaug.causal import SCM
from cfaug.config import Recipe, load_recipe
from cfaug.data import Schema
from cfaug.data.images import to_float
from cfaug.data.micro_batch import Sources
from cfaug.data.sources import mnist
from cfaug.decode import CounterfactualModel, DiffusionDecoder
from cfaug.decode.diffusion.sampling import evaluations
from cfaug.judge import gap_closed
from cfaug.judge.accuracy import read_results
from cfaug.judge.axioms import l1
from cfaug.judge.tables import summarise
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages import evaluate, fit, open_run, run_recipe
from cfaug.stages.attribute_classifiers import attribute_readers, quantised
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.generated_sets import balanced_acts, make_pool
from cfaug.stages.leak_probes import leak_figures

SETTINGS = [
    "--train.methods=[erm,counterfactuals_only,oracle]",
    "--evaluate.images=2000",
    "--evaluate.loss_images=20000",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=sorted(PARTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", required=True, help="MNIST in torchvision's layout")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for found in PARTS[given.what](given):
        line = {"what": given.what, **found}
        record(given.out / "decoder.jsonl", line, command=command(given), machine=machine())


def command(given: argparse.Namespace) -> str:
    return shlex.join(
        ["python", "benchmarks/decoder.py", given.what, "OUT", "--root", "MNIST", "--threads", str(given.threads)]
    )


def machine() -> dict[str, Any]:
    return {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def recipe_for(given: argparse.Namespace) -> Recipe:
    return load_recipe(
        shipped_recipes()["double_colored_mnist"],
        [f"--data.root={given.root}", f"--train.threads={given.threads}", *SETTINGS],
    )


# -- the table of goals ----------------------------------------------------------------------------------------------


def goals(given: argparse.Namespace) -> list[dict[str, Any]]:
    with open_run(recipe_for(given), given.out / "run") as run:
        run_recipe(run)
        figures, decoder = dict(evaluate(run).figures), fit(run).decoder
    figures.pop("rows")
    report = decoder.report
    assert report is not None
    methods = {row.method: row for row in summarise(read_results(given.out / "run" / "results.jsonl"))}
    erm, only, oracle = (methods[name] for name in ("erm", "counterfactuals_only", "oracle"))
    return [
        {
            "decoder": decoder.digest[:12],
            "sampler": [decoder.config.sampler, decoder.config.steps],
            "training": {"steps": report.steps, "seconds": report.seconds},
            "seconds": json.loads((given.out / "run" / "run.json").read_text())["seconds"],
            "worst_group": {name: row.worst for name, row in methods.items()},
            "average": {name: row.average for name, row in methods.items()},
            "gap_closed": gap_closed(only.worst[0], erm.worst[0], oracle.worst[0]),
            **figures,
        }
    ]


# -- known counterfactuals -------------------------------------------------------------------------------------------


class Known:
    """Digits of the training file that no decoder was trained on, in random colours, and their true counterfactuals."""

    def __init__(self, root: str, count: int = 500, seed: int = 0) -> None:
        grey, labels = mnist._read(Path(root), train=True)
        rows = np.random.default_rng(0).permutation(len(grey))[-count:]  # the data set takes them from the front
        rng = np.random.default_rng([seed, 99])
        mask, digits = mnist.binary(grey[rows]), labels[rows]
        shades = rng.normal(0, mnist.JITTER, (2, count, 1, 3))
        codes = rng.integers(0, 10, (4, count))
        self.images = self._paint(mask, codes[0], codes[1], shades)
        self.truth = self._paint(mask, codes[2], codes[3], shades)
        self.table, self.after = self._table(digits, codes[0], codes[1]), self._table(digits, codes[2], codes[3])
        self.sources = Sources(self.images, self.table, list(map(str, self.table.index)), [0] * count)
        self.visible = torch.from_numpy(codes[0] != codes[1])

    @staticmethod
    def _paint(mask: Any, fore: Any, back: Any, shades: Any) -> torch.Tensor:
        flat = np.array(list(mnist.COLOURS.values()))[np.stack([fore, back])][:, :, None] / 255 + shades
        colours = np.round(np.clip(flat, 0, 1) * 255).astype(np.uint8)[:, :, 0]
        return to_float(torch.from_numpy(mnist._paint(mask, *colours)).permute(0, 3, 1, 2))

    @staticmethod
    def _table(digits: Any, fore: Any, back: Any) -> pd.DataFrame:
        names = np.array(list(mnist.COLOURS), dtype=object)
        return pd.DataFrame(
            {"digit": digits.astype(str).astype(object), "foreground": names[fore], "background": names[back]}
        )

    def judge(self, decoder: Any, readers: dict[str, Any] | None = None) -> dict[str, Any]:
        noise = decoder.abduct(self.sources)
        made = decoder.predict(noise, self.after, [{"foreground", "background"}] * len(self.table))
        same = decoder.predict(noise, self.table, [set()] * len(self.table))
        undone = decoder.predict(
            decoder.abduct(dataclasses.replace(self.sources, images=made, table=self.after)),
            self.table,
            [{"foreground", "background"}] * len(self.table),
        )
        error = l1(made, self.truth)
        seen = self.visible.numpy()
        found = {
            "truth_l1": float(error[seen].mean()),
            "truth_l1_p95": float(np.quantile(error[seen], 0.95)),
            "composition_l1": float(l1(same, self.images).mean()),
            "reversibility_l1": float(l1(undone, self.images)[seen].mean()),
        }
        for name, reader in (readers or {}).items():
            wanted = torch.from_numpy(np.asarray(decoder.schema.index(name, self.after[name])))
            pixels, real = quantised(made)[self.visible], quantised(self.truth)[self.visible]
            right, best = (float((reader.predict(p) == wanted[self.visible]).float().mean()) for p in (pixels, real))
            found[f"{name}_relative"] = right / best
        return found


def _readers(given: argparse.Namespace) -> tuple[Schema, dict[str, Any]]:
    recipe = recipe_for(given)
    inputs = open_inputs(recipe, progress=False)
    readers, _ = attribute_readers(recipe, inputs, set(), progress=False)
    return inputs.schema, readers


# -- curves ----------------------------------------------------------------------------------------------------------


def solvers(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Solvers and numbers of steps, then depths of abduction (how far into the noise a recoloured image goes)."""
    known, (_, readers) = Known(given.root), _readers(given)
    chosen: list[tuple[str, int, float]] = [
        (sampler, steps, 1.0) for sampler in ("reversible_euler", "reversible", "midpoint") for steps in (1, 2, 3, 4)
    ]
    chosen += [("reversible", 4, depth) for depth in (0.25, 0.5, 0.75)]
    decoder: Any = CounterfactualModel.load(given.out / "run" / "model").decoder
    for sampler, steps, depth in chosen:
        depths = {} if depth == 1 else {"foreground": depth, "background": depth}
        decoder.config = dataclasses.replace(decoder.config, sampler=sampler, steps=steps, depth=depths)
        count = evaluations(sampler, round(steps * depth))
        yield {
            "sampler": sampler,
            "steps": steps,
            "depth": depth,
            "evaluations": count,
            **known.judge(decoder, readers),
        }


def _train(
    given: argparse.Namespace, score: Callable[[DiffusionDecoder], float] | None = None, **settings: Any
) -> DiffusionDecoder:
    recipe = recipe_for(given)
    inputs = open_inputs(recipe, progress=False)
    scm = SCM(inputs.graph, inputs.schema).fit(inputs.train.table, seed=0)
    decoder = DiffusionDecoder(scm.schema, inputs.graph.parents("image"), recipe.decoder, **settings)
    return decoder.fit(inputs.train, seed=0, progress=False, score=score)


def through_training(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The averaged weights on the way; the last row is the end, with the learning rate annealed."""
    known, (_, readers) = Known(given.root), _readers(given)
    rows: list[dict[str, Any]] = []
    started = time.monotonic()

    def score(decoder: DiffusionDecoder) -> float:
        nonlocal started
        spent = time.monotonic() - started + (rows[-1]["seconds"] if rows else 0.0)
        rows.append({"seconds": round(spent, 1), **known.judge(decoder, readers)})
        started = time.monotonic()
        return float(len(rows))  # never early

    _train(given, score, validate_every=500)
    return rows


def designs(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What stands beside the noise: nothing, edges, or edges and contrast; 800 steps each."""
    known, (_, readers) = Known(given.root), _readers(given)
    variants: dict[str, dict[str, Any]] = {
        "none": {"structure": "none"},
        "gradient": {"structure": "gradient"},
        "layout": {"structure": "layout"},
    }
    for name, settings in variants.items():
        decoder = _train(given, max_steps=800, **settings)
        report = decoder.report
        assert report is not None
        for sampler, steps in (("reversible_euler", 1), ("reversible", 2)):
            decoder.config = dataclasses.replace(decoder.config, sampler=sampler, steps=steps)
            figures = known.judge(decoder, readers)
            yield {"design": name, "sampler": sampler, "steps": steps, "seconds": report.seconds, **figures}


def leaks(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The probes of `cfaug evaluate`, of the decoder in OUT/run."""
    recipe = recipe_for(given)
    inputs = open_inputs(recipe, progress=False)
    assert inputs.oracle is not None
    acts = balanced_acts(inputs.oracle, len(inputs.oracle), recipe.seed)
    model = CounterfactualModel.load(given.out / "run" / "model")
    pool = make_pool(model, inputs.oracle, acts, recipe.seed, recipe.generate.batch_size, progress=False)
    yield leak_figures(recipe, inputs, model, pool, progress=False)


# -- speed -----------------------------------------------------------------------------------------------------------


def speed(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One process a core with one thread each, as the local engine runs them; batches of the recipe."""
    import multiprocessing

    folder = given.out / "run" / "model"
    with multiprocessing.get_context("spawn").Pool(given.threads) as pool:
        found = pool.starmap(_clock, [(str(folder), given.root)] * given.threads)
    yield {"processes": given.threads, **_together(found)}


def _together(found: list[dict[str, float]]) -> dict[str, Any]:
    total = {
        key: sum(one[key] for one in found)
        for key in ("counterfactuals_per_second", "evaluations_per_second", "peak_gflops")
    }
    mean = {key: found[0][key] for key in ("evaluations", "gflop_per_evaluation")}
    reached = total["evaluations_per_second"] * mean["gflop_per_evaluation"]
    return {
        **{key: round(value, 3) for key, value in {**total, **mean}.items()},
        "milliseconds_per_evaluation_and_core": round(1000 * len(found) / total["evaluations_per_second"], 3),
        "share_of_time_in_the_network": round(
            total["counterfactuals_per_second"] * mean["evaluations"] / total["evaluations_per_second"], 3
        ),
        "share_of_peak_matrix_throughput": round(reached / total["peak_gflops"], 3),
    }


def _clock(folder: str, root: str) -> dict[str, float]:
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    decoder: Any = CounterfactualModel.load(folder).decoder
    known = Known(root, count=100)
    affected = [{"foreground", "background"}] * 100
    net = decoder.net
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = net.register_forward_hook(count)
    with FlopCounterMode(display=False) as flops:
        decoder.predict(decoder.abduct(known.sources), known.after, affected)
    handle.remove()
    each, flop = calls, flops.get_total_flops() / calls / 100

    def rate(work: Callable[[], Any], units: int, least: float = 8.0) -> float:
        work()
        started, done = time.monotonic(), 0
        while time.monotonic() - started < least:
            work()
            done += units
        return done / (time.monotonic() - started)

    def generate() -> None:
        decoder.predict(decoder.abduct(known.sources), known.after, affected)

    inputs: list[Any] = []
    handle = net.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    generate()
    handle.remove()

    def evaluate() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            net(*inputs[0])

    matrix = torch.randn(1024, 1024, dtype=torch.bfloat16)
    return {
        "evaluations": float(each),
        "gflop_per_evaluation": flop / 1e9,
        "counterfactuals_per_second": rate(generate, 100),
        "evaluations_per_second": rate(evaluate, 100),
        "peak_gflops": rate(lambda: matrix @ matrix, 1) * 2 * 1024**3 / 1e9,
    }


PARTS: dict[str, Callable[[argparse.Namespace], Iterable[dict[str, Any]]]] = {
    "goals": goals,
    "solvers": solvers,
    "time": through_training,
    "designs": designs,
    "leaks": leaks,
    "speed": speed,
}

if __name__ == "__main__":
    main()
