"""Pretrained pipelines as image mechanisms, on a toy whose pipeline can be trained here: digits in colours on textures, 28 px.

    python benchmarks/editors.py train OUT --data DIR        an in-painting pipeline of Stable Diffusion's class, half an hour on a core
    python benchmarks/editors.py toy OUT --data DIR          `cfaug run` with it: the table, and the gap to the oracle that is closed
    python benchmarks/editors.py train-garments OUT --data DIR     the same of photographs, at 64 px; `garments OUT --weights FILE` is its table
    python benchmarks/editors.py overhead OUT --data DIR     `cfaug generate` beside a bare loop of the same calls, and the gain of batches
    python benchmarks/editors.py abduction OUT --data DIR    the doubly abductive scheme beside plain inversion: fidelity and editability

DIR holds mnist/ and wildlife_textures/. The data are those of `layers.py textured`, so its rows stand beside these. Rows go to
results/editors.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layers import textured_folder
from rows import cpu, mean_of_groups, record

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "tests")]

from train_editor import Task, train  # noqa: E402

from cfaug.config import load_recipe  # noqa: E402
from cfaug.data import load_images  # noqa: E402
from cfaug.data.images import to_float, to_uint8  # noqa: E402
from cfaug.data.micro_batch import Sources  # noqa: E402
from cfaug.decode import CounterfactualModel  # noqa: E402
from cfaug.decode.editors import backends  # noqa: E402
from cfaug.editor_config import AbductionConfig  # noqa: E402
from cfaug.judge.accuracy import read_results  # noqa: E402
from cfaug.judge.tables import summarise  # noqa: E402
from cfaug.offline import Plan  # noqa: E402
from cfaug.offline.commit import open_destination  # noqa: E402
from cfaug.offline.make_shard import ShardWork  # noqa: E402
from cfaug.stages.checked_inputs import open_inputs  # noqa: E402
from cfaug.train import TensorImages, TrainSettings, train_classifier  # noqa: E402

RESULTS, RECIPES = HERE.parent / "results" / "editors.jsonl", HERE.parents[1] / "recipes"
TEMPLATE = "a {colour} digit on {ground}"


def folders(given: argparse.Namespace) -> tuple[Path, Path]:
    return textured_folder(given.out / "textured_data", given.data, 0.95), textured_folder(
        given.out / "textured_oracle", given.data, 0.0
    )


def train_toy(given: argparse.Namespace) -> None:
    root, _ = folders(given)
    task = Task(
        root, "digit", ("colour", "ground"), usual=("colour", "ground"), template=TEMPLATE, side=32, channels=(16, 32),
        regions=(0.35, 0.55, 0.1), steps=(1000, 2500, 1000),
    )  # fmt: skip
    record(
        RESULTS,
        {"what": "trained", "seconds": round(train(given.out, task))},
        cpu=cpu(),
        command="python benchmarks/editors.py train OUT --data DIR",
    )


def options(given: argparse.Namespace) -> list[str]:
    """Of the recipe for fully confounded digits, what makes it these data and this pipeline."""
    root, oracle = folders(given)
    return [
        f"--data.root={root}", f"--data.oracle={oracle}", "--data.source=folder", "--data.masks=mask", "--data.rho=null",
        "--data.train_images=null", "--data.val_images=null", "--name=textured_inpaint", "--attributes.spurious=[colour, ground]",
        "--graph=digit -> colour; digit -> ground; digit -> image; colour -> image; ground -> image",
        "--decoder.layers={background: [ground], foreground: [colour]}", "--decoder.mask.from=given", "--decoder.kind=pretrained",
        f"--decoder.editor.pipeline={given.out / 'pipeline'}", f"--decoder.editor.template={TEMPLATE}", "--decoder.editor.steps=6",
        "--decoder.editor.strength=1.0", "--decoder.editor.size=32", "--decoder.editor.guidance=2.0", "--decoder.editor.batch=25", "--generate.batch_size=25",
        "--generate.samples_per_shard=250", "--generate.workers=0", f"--plan.per_image={given.per_image}", "--gate.enabled=false", "--train.threads=1", "--train.selection=worst_group",
        "--train.methods=[erm, group_resampling, counterfactuals_only, cfaug, oracle]", "--train.seeds=[0, 1, 2]",
    ]  # fmt: skip


def train_garments(given: argparse.Namespace) -> None:
    root = given.data / "photos" / "garments"
    task = Task(
        root, "garment", ("scene",), usual=("garment", "scene"), template="a photo of {scene}", side=64, channels=(16, 32, 64),
        regions=(0.0, 0.9, 0.1), steps=(1500, 1300, 500), first_batch=8,
    )  # fmt: skip
    seconds = round(train(given.out, task))
    record(
        RESULTS,
        {"what": "trained", "data": "garments", "seconds": seconds},
        cpu=cpu(),
        command="python benchmarks/editors.py train-garments OUT --data DIR",
    )


def garments(given: argparse.Namespace) -> None:
    """The recipe of the layered decoder with the scenes drawn by the pipeline in place of another image's."""
    photos = given.data / "photos"
    table(
        given, "photos_layered", given.out / "run", "garments",
        [
            f"--data.root={photos / 'garments'}", f"--data.oracle={photos / 'garments_oracle'}", f"--train.weights={given.weights}", "--train.threads=1",
            "--decoder.kind=pretrained", f"--decoder.editor.pipeline={given.out / 'pipeline'}", "--decoder.editor.template=a photo of {scene}",
            "--decoder.editor.steps=6", "--decoder.editor.strength=1.0", "--decoder.editor.size=64", "--decoder.editor.guidance=2.0",
            "--decoder.editor.batch=32", "--generate.workers=0", f"--plan.per_image={given.per_image}", "--gate.enabled=false",
            "--train.methods=[erm, group_resampling, dfr, counterfactuals_only, cfaug, cfaug+dfr, oracle]",
        ],
    )  # fmt: skip


def toy(given: argparse.Namespace) -> None:
    out = given.out / ("run" if given.per_image == 1 else f"run_{given.per_image}")
    table(given, "confounded_mnist", out, "toy", options(given))


def table(given: argparse.Namespace, recipe: str, out: Path, what: str, options: list[str]) -> None:
    """`cfaug run`, and a row for each method."""
    command = [
        sys.executable,
        "-m",
        "cfaug",
        "run",
        str(RECIPES / f"{recipe}.yaml"),
        "--out",
        str(out),
        "--no-progress",
    ]
    before = time.perf_counter()
    subprocess.run([*command, *options], check=True)
    rows = read_results(out / "results.jsonl")
    for one in summarise(rows):
        record(
            RESULTS,
            {
                "what": what, "per_image": given.per_image, "method": one.method, "seeds": len(one.seeds), "worst_group": [round(v, 4) for v in one.worst],
                "mean_of_groups": round(mean_of_groups(rows, one.method), 4), "average": [round(v, 4) for v in one.average],
                "gap_closed": one.gap_closed, "seconds": round(time.perf_counter() - before, 1),
            },
            cpu=cpu(), command=f"python benchmarks/editors.py {what} OUT --data DIR --per-image {given.per_image}",
        )  # fmt: skip


def opened(given: argparse.Namespace, **editor: Any) -> tuple[Any, Any, Any]:
    """The run's training images, its plan, and its model with other settings of the editor."""
    run = given.out / "run"
    recipe = load_recipe(run / "config.yaml")
    inputs = open_inputs(recipe, False, True)
    model = CounterfactualModel.load(run / "model")
    own: Any = model.decoder
    own.config = dataclasses.replace(own.config, editor=dataclasses.replace(own.editor, **editor))
    return inputs, Plan.load(run / "plan"), model


def overhead(given: argparse.Namespace, images: int = 6, turns: int = 3) -> None:
    """Shards' work beside a bare loop of the same calls, in turns; and edits one by one beside eight in a call."""
    inputs, plan, model = opened(given, steps=given.steps, batch=1)
    rows = [row for row in plan.sample(10 * images) if not row.do.is_null][:images]
    decoder = model.decoder

    def ours(batch: int) -> float:
        decoder.config = dataclasses.replace(decoder.config, editor=dataclasses.replace(decoder.editor, batch=batch))
        work = ShardWork(model, inputs.sources, plan, open_destination(given.out / "run"), images, {})
        before = time.perf_counter()
        work.batch(rows)
        return time.perf_counter() - before

    edits: list[Any] = []
    run = backends.run
    backends.run = lambda pipe, traits, some, config: (edits.extend(some), run(pipe, traits, some, config))[1]
    ours(1)
    backends.run = run

    def bare() -> float:
        before = time.perf_counter()
        for edit in edits:
            decoder.pipe(
                prompt=[edit.prompt], image=[edit.image], mask_image=[edit.region], strength=1.0, guidance_scale=2.0,
                num_inference_steps=given.steps, generator=[torch.Generator().manual_seed(edit.seed)], height=32, width=32, output_type="np",
            )  # fmt: skip
        return time.perf_counter() - before

    pairs = [(ours(1), bare()) for _ in range(turns)]
    ratios = [a / b for a, b in pairs]
    many = [(ours(8), ours(1)) for _ in range(turns)]
    record(
        RESULTS,
        {
            "what": "overhead", "images": images, "edits": len(edits), "steps": given.steps, "seconds_an_edit": round(float(np.median([b for _, b in pairs])) / len(edits), 3),
            "ratio_to_a_bare_loop": [round(r, 4) for r in sorted(ratios)], "ratio_of_batches_of_8": [round(a / b, 3) for a, b in sorted(many)],
        },
        cpu=cpu(), command=f"python benchmarks/editors.py overhead OUT --data DIR --steps {given.steps}",
    )  # fmt: skip


def readers_of(inputs: Any) -> dict[str, Any]:
    """A net of each attribute, trained on the unconfounded images."""
    clean, schema = inputs.oracle, inputs.schema
    pixels = load_images(clean, range(len(clean)), progress=False)
    settings = TrainSettings(epochs=6, batch_size=128, lr=1e-2, selection="last")
    codes = {name: torch.from_numpy(np.asarray(schema.index(name, clean.table[name]))) for name in schema.names}
    return {
        name: train_classifier(
            "erm", TensorImages(pixels, own), None, settings, 0, schema[name].categories, progress=False
        )
        for name, own in codes.items()
    }


def abduction(given: argparse.Namespace, images: int = 24) -> None:
    """do(ground) on whole images, without masks: what stays of digit and colour (fidelity), and whether the ground is the new one (editability)."""
    inputs, _, _ = opened(given)
    readers, schema = readers_of(inputs), inputs.schema
    test = inputs.test
    real, table = load_images(test, range(images), progress=False), test.table.iloc[:images]
    grounds = list(schema["ground"].categories)
    wanted = [grounds[(grounds.index(own) + 3) % len(grounds)] for own in table["ground"]]
    own = {"steps": given.steps, "rank": 4, "learning_rate": 2e-3}
    ways = {
        "strength 0.5": (0.5, {}), "strength 0.8": (0.8, {}),
        "first abduction, strength 0.8": (0.8, own), "both abductions, strength 0.8": (0.8, {**own, "text_steps": given.steps}),
        "both abductions, strength 0.5": (0.5, {**own, "text_steps": given.steps}),
    }  # fmt: skip
    for way, (strength, settings_of_it) in ways.items():
        _, _, model = opened(given, batch=1, strength=strength, abduction=AbductionConfig(**settings_of_it))
        model.decoder.layers = {}
        before, made = time.perf_counter(), []
        for i in range(images):
            noise = model.decoder.abduct(
                Sources(to_float(real[i : i + 1]), table.iloc[[i]], [str(table.index[i])], [i])
            )
            made.append(model.decoder.predict(noise, table.iloc[[i]].assign(ground=wanted[i]), [{"ground"}]))
        done = to_uint8(torch.cat(made))
        read = {name: net.predict(done).numpy() for name, net in readers.items()}
        truth = {name: np.asarray(schema.index(name, wanted if name == "ground" else table[name])) for name in readers}
        inside = torch.from_numpy(np.stack([test.mask(i) for i in range(images)]) > 127)[:, None]
        kept = ((done.float() - real.float()).abs() * inside).sum() / (3 * inside.sum()) / 255
        record(
            RESULTS,
            {
                "what": "abduction", "way": way, "images": images, "steps": given.steps if settings_of_it else 0,
                **{name: round(float((read[name] == truth[name]).mean()), 4) for name in readers},
                "object_l1": round(float(kept), 4), "seconds_an_image": round((time.perf_counter() - before) / images, 2),
            },
            cpu=cpu(), command=f"python benchmarks/editors.py abduction OUT --data DIR --steps {given.steps}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = {
        "train": train_toy,
        "toy": toy,
        "train-garments": train_garments,
        "garments": garments,
        "overhead": overhead,
        "abduction": abduction,
    }
    parser.add_argument("part", choices=parts)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path, help="garments: torchvision's mobilenet_v2")
    parser.add_argument("--per-image", type=int, default=1, help="toy: counterfactuals of each image")
    parser.add_argument("--steps", type=int, default=50, help="overhead: of the sampler; abduction: of each adapter")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out = given.out.absolute()
    parts[given.part](given)


if __name__ == "__main__":
    main()
