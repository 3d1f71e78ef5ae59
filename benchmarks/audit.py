"""Whether `cfaug audit` tells the truth: nets whose dependence on a shortcut is known, on images whose true counterfactuals are.

    python benchmarks/audit.py garments RUN          a finished run of recipes/photos_layered.yaml on the garments
    python benchmarks/audit.py xray RUN              a finished run of recipes/photos_functional.yaml on the x-rays
    python benchmarks/audit.py digits RUN            a finished run of recipes/double_colored_mnist.yaml
    python benchmarks/audit.py ranking               three shortcuts of known strengths, simulated answers
    python benchmarks/audit.py methods RUN           the audited classifiers of a run: change against the gap of the worst group

A net is (1 - w) object + w shortcut, in logits: a linear head on features of the image without the region of the shortcut, and one on
features of the whole image that reads the shortcut. Of digits they are small nets, the first of which sees shapes alone. Estimates use
counterfactuals of the run's model, of test images; the truth, the test split's own pairs (an object in every scene, an x-ray with and
without a marker) or the construction (a digit painted in every colour). Rows go to results/audit.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rows import cpu, record

from cfaug.causal import do
from cfaug.config import load_recipe
from cfaug.data import load_images
from cfaug.data.images import Pixels, to_float, to_uint8
from cfaug.data.sources.mnist import COLOURS
from cfaug.decode import CounterfactualModel
from cfaug.judge.effects import ALL, Answers, effects
from cfaug.stages.attribute_classifiers import feature_store, settings_of, to_pixels
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.shapes import shapes
from cfaug.train import TensorImages, train_classifier
from cfaug.train.heads import Weighted, fit_logistic
from cfaug.train.models import as_input

RESULTS = Path(__file__).resolve().parent / "results" / "audit.jsonl"
WEIGHTS = (0.0, 0.1, 0.5, 1.0)
BATCH, SOURCES, DRAWS = 50, 400, 100
MEASURES = ("signed", "logit")
Blank = Callable[[Pixels, Any], Pixels]
"""An image and its mask -> the image without the shortcut's region."""


class Bench:
    """The test images of a run, what its model makes of them, and the features of all, with and without the shortcut's region."""

    def __init__(self, run: Path, shortcut: str, pair: str, blank: Blank) -> None:
        recipe = load_recipe(run / "config.yaml")
        self.inputs = inputs = open_inputs(recipe, False, True)
        self.shortcut, self.blank = shortcut, blank
        self.net = feature_store(recipe, inputs, None, progress=False).model.eval()
        model, test = CounterfactualModel.load(run / "model"), inputs.test
        table = pd.read_csv(Path(recipe.data.root) / "metadata.csv").set_index("file_name").loc[list(test.table.index)]
        self.pair = table[pair].to_numpy()
        self.values = list(inputs.schema[shortcut].categories)
        self.labels = np.asarray(inputs.schema.index(inputs.target, test.table[inputs.target]), dtype=np.int64)
        self.own = test.table[shortcut].to_numpy()
        self.masks = [test.mask(i) for i in range(len(test))]
        self.images = [test.image(i) for i in range(len(test))]
        self.factual = self.both(self.images, range(len(test)))
        self.made = []
        for k, value in enumerate(self.values):
            made: list[Pixels] = []
            for start in range(0, len(test), BATCH):
                rows = list(range(start, min(start + BATCH, len(test))))
                given = to_float(
                    torch.from_numpy(np.stack([self.images[i] for i in rows])).permute(0, 3, 1, 2).contiguous()
                )
                masks = (
                    None
                    if self.masks[0] is None
                    else torch.from_numpy(np.stack([self.masks[i] for i in rows]))[:, None].float() / 255
                )  # type: ignore[arg-type]
                noise = model.abduct(given, test.table.iloc[rows], [1000 * k + i for i in rows], masks=masks)
                made += list(to_pixels(model.act(do({shortcut: value})).predict(noise)[0]))
            self.made.append(self.both(made, range(len(test))))
            print("made", value, flush=True)

    def shown(self, row: int, k: int) -> bool:
        """Whether the object can be seen beside value ``k``."""
        return True

    def pairs(self, weight: float) -> list[tuple[int, Any]]:
        """Test images, and the net's answers (K,) to true counterfactuals of them."""
        said = self.probabilities(self.factual, weight)
        place = {(p, v): i for i, (p, v) in enumerate(zip(self.pair, self.own))}
        return [
            (i, said[place[p, other]])
            for (p, v), i in place.items() for other in self.values if other != v and (p, other) in place
        ]  # fmt: skip

    def features(self, images: list[Pixels]) -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = torch.from_numpy(np.stack(images[start : start + BATCH])).permute(0, 3, 1, 2)
                found.append(self.net.embed(as_input(batch)).float())
        return torch.cat(found)

    def both(self, images: list[Pixels], rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the images without the shortcut's region, and of the whole images."""
        return self.features([self.blank(image, self.masks[i]) for image, i in zip(images, rows)]), self.features(
            images
        )

    def heads(self) -> None:
        """The object's head and the shortcut's, on validation images: those are not asked about, and lend nothing to the model's images."""
        inputs, val = self.inputs, self.inputs.val
        images = [val.image(i) for i in range(len(val))]
        bare, whole = (
            self.features([self.blank(image, val.mask(i)) for i, image in enumerate(images)]),
            self.features(images),
        )
        labels, codes = (
            torch.from_numpy(np.asarray(inputs.schema.index(n, val.table[n]))) for n in (inputs.target, self.shortcut)
        )
        ones = torch.ones(len(val))
        self._object = fit_logistic(
            Weighted(bare, labels, ones), len(inputs.schema[inputs.target].categories), (1e-2,)
        )[0]
        self._reader = fit_logistic(Weighted(whole, codes, ones), len(self.values), (1e-2,))[0]

    def probabilities(self, features: tuple[torch.Tensor, torch.Tensor], weight: float) -> Any:
        """The net's answers: value k of the shortcut speaks for class k."""
        (_, w, b), (_, v, c) = self._object, self._reader
        logits = (1 - weight) * (features[0] @ w.T + b) + weight * (features[1] @ v.T + c)
        return logits.double().softmax(1).numpy()


def known(bench: Any, name: str, run: str) -> None:
    """Coverage of the truth by 95 % intervals of signed changes by group, and claims for nets that cannot see the shortcut."""
    bench.heads()
    table = pd.DataFrame({bench.shortcut: bench.own}, dtype=object)
    target, classes = bench.inputs.target, list(bench.inputs.schema[bench.inputs.target].categories)
    for weight in WEIGHTS:
        factual = bench.probabilities(bench.factual, weight)
        made = [bench.probabilities(one, weight) for one in bench.made]
        truth = true_changes(bench, factual, bench.pairs(weight), classes)
        covered: dict[str, list[bool]] = {f"{kind} {measure}": [] for kind in ("all", "group") for measure in MEASURES}
        claims, off = 0, []
        for draw in range(DRAWS):
            rows = np.sort(np.random.default_rng([draw, 5]).permutation(len(table))[:SOURCES])
            asked = [(k, i, row) for k in range(len(bench.values)) for i, row in enumerate(rows) if bench.shown(row, k)]
            answers = Answers(
                target, classes, bench.labels[rows], factual[rows], np.stack([made[k][row] for k, _, row in asked]),
                np.array([i for _, i, _ in asked]), [{bench.shortcut: bench.values[k]} for k, _, _ in asked],
                table.iloc[rows].reset_index(drop=True),
            )  # fmt: skip
            for row in effects(answers, [bench.shortcut], draw, 400):
                whole = row["group"] == ALL
                claims += whole and row["claimed"]
                for measure in MEASURES:
                    low, high = row[measure][1:]
                    inside = low - 1e-9 <= truth[row["group"]][measure] <= high + 1e-9
                    covered[f"{'all' if whole else 'group'} {measure}"].append(bool(inside))
                if whole:
                    off.append([row[measure][0] for measure in MEASURES] + [row["flip_rate"], row["flip_floor"]])
        record(
            RESULTS,
            {
                "what": name, "weight": weight, "draws": DRAWS, "sources": SOURCES, "claimed": int(claims),
                "covered": {key: round(float(np.mean(values)), 4) for key, values in covered.items() if values},
                "truth": {key: round(value, 4) for key, value in truth[ALL].items()},
                "estimate": {key: round(float(v), 4) for key, v in zip((*MEASURES, "flip_rate", "flip_floor"), np.mean(off, axis=0))},
            },
            cpu=cpu(), command=run,
        )  # fmt: skip


def true_changes(
    bench: Any, factual: Any, pairs: list[tuple[int, Any]], classes: list[str]
) -> dict[str, dict[str, float]]:
    """Group, and "all" -> mean change of the label's probability, its logit and the predictions over the true pairs."""
    found: dict[str, dict[str, list[float]]] = {}
    for i, after in pairs:
        label = bench.labels[i]
        for name in (ALL, f"{bench.inputs.target}={classes[label]},{bench.shortcut}={bench.own[i]}"):
            group = found.setdefault(name, {measure: [] for measure in (*MEASURES, "flip_rate")})
            a, b = (float(np.clip(one[label], 1e-6, 1 - 1e-6)) for one in (factual[i], after))
            group["signed"].append(b - a)
            group["logit"].append(np.log(b / (1 - b)) - np.log(a / (1 - a)))
            group["flip_rate"].append(float(factual[i].argmax() != after.argmax()))
    return {name: {key: float(np.mean(values)) for key, values in one.items()} for name, one in found.items()}


def outline(images: torch.Tensor) -> torch.Tensor:
    """Digits white on black, uint8 (N, 1, H, W), whatever their colours: the corner is ground."""
    bright = shapes(images) > 127
    return 255 * (bright ^ bright[:, :, :1, :1]).to(torch.uint8)


class Digits:
    """As Bench, of Double-colored MNIST: the first test images, the digit's colour set to each of ten, by the model and by the construction."""

    def __init__(self, run: Path, images: int = 1000) -> None:
        recipe = load_recipe(run / "config.yaml")
        self.inputs = inputs = open_inputs(recipe, False, True)
        self.shortcut, test, model = "foreground", inputs.test, CounterfactualModel.load(run / "model")
        self.values = list(inputs.schema[self.shortcut].categories)
        rows = [i for i in range(images) if test.table["foreground"].iloc[i] != test.table["background"].iloc[i]]
        images, table = len(rows), test.table.iloc[rows]
        self.ground = table["background"].to_numpy()
        self.labels = np.asarray(inputs.schema.index(inputs.target, table[inputs.target]), dtype=np.int64)
        self.own = table[self.shortcut].to_numpy()
        settings = dataclasses.replace(settings_of(recipe), model="small_cnn", selection="last", epochs=15)
        val = load_images(inputs.val, range(len(inputs.val)), progress=False)
        self.nets = []
        for name, seen in ((inputs.target, outline(val)), (self.shortcut, val)):
            codes = torch.from_numpy(np.asarray(inputs.schema.index(name, inputs.val.table[name])))
            trained = train_classifier("erm", TensorImages(seen, codes), None, settings, 0, inputs.schema[name].categories, progress=False)  # fmt: skip
            self.nets.append(trained.model.eval())
        factual = load_images(test, rows, progress=False)
        masks = torch.from_numpy(np.stack([test.mask(i) for i in rows]) > 127)[:, None]
        self.factual = self.both(factual)
        self.made, self.true = [], []
        for k, value in enumerate(self.values):
            made = []
            for start in range(0, images, BATCH):
                some = slice(start, start + BATCH)
                inside = masks[some].float() if recipe.decoder.kind == "layered" else None
                noise = model.abduct(
                    to_float(factual[some]), table.iloc[some], [1000 * k + i for i in rows[some]], masks=inside
                )
                made.append(model.act(do({self.shortcut: value})).predict(noise)[0])
            self.made.append(self.both(to_uint8(torch.cat(made))))
            colour = torch.tensor(COLOURS[value], dtype=torch.uint8)[None, :, None, None]
            self.true.append(self.both(torch.where(masks, colour, factual)))
            print("made", value, flush=True)

    def heads(self) -> None:
        """Both nets are trained already."""

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the digit by the shape alone, and of the colour."""
        with torch.inference_mode():
            return tuple(net(as_input(seen)).double() for net, seen in zip(self.nets, (outline(images), images)))  # type: ignore[return-value]

    def probabilities(self, said: tuple[torch.Tensor, torch.Tensor], weight: float) -> Any:
        """The net's answers: value k of the shortcut speaks for class k."""
        return ((1 - weight) * said[0] + weight * said[1]).softmax(1).numpy()

    def shown(self, row: int, k: int) -> bool:
        """As Bench's: a digit in the colour of its ground is none, whatever a net looks at."""
        return bool(self.ground[row] != self.values[k])

    def pairs(self, weight: float) -> list[tuple[int, Any]]:
        """As Bench's."""
        return [
            (i, after)
            for k, (value, one) in enumerate(zip(self.values, self.true))
            for i, after in enumerate(self.probabilities(one, weight)) if self.own[i] != value and self.shown(i, k)
        ]  # fmt: skip


def digits(given: argparse.Namespace) -> None:
    known(Digits(given.run), "double_colored_mnist", "python benchmarks/audit.py digits RUN")


def garments(given: argparse.Namespace) -> None:
    def blank(image: Pixels, mask: Any) -> Pixels:
        return np.where(mask[..., None] > 127, image, np.uint8(127))

    known(Bench(given.run, "scene", "object", blank), "garments", "python benchmarks/audit.py garments RUN")


def xray(given: argparse.Namespace) -> None:
    def blank(image: Pixels, mask: Any) -> Pixels:
        made = image.copy()
        made[: round(0.3 * image.shape[0]) + 8] = 0
        return made

    known(Bench(given.run, "marker", "pair", blank), "xray_marker", "python benchmarks/audit.py xray RUN")


def ranking(given: argparse.Namespace, draws: int = 100, sources: int = 300) -> None:
    """Three attributes, of which the net uses the first most and the third not at all."""
    right = false = 0
    for draw in range(draws):
        rng = np.random.default_rng([draw, 6])
        labels = rng.integers(0, 2, sources)
        own = np.where(rng.random((sources, 3)) < 0.8, labels[:, None], 1 - labels[:, None])
        set_to = rng.integers(0, 2, (4, sources, 3))
        strengths = np.array([1.0, 0.5, 0.0])
        p, q = (
            1 / (1 + np.exp(-(2 * (2 * labels - 1) + (2 * a - 1) @ strengths + rng.normal(0, 0.5, a.shape[:-1]))))
            for a in (own, set_to)
        )
        names = ["first", "second", "none"]
        table = pd.DataFrame({name: own[:, k].astype(str) for k, name in enumerate(names)}, dtype=object)
        answers = Answers(
            "y", ["0", "1"], labels, np.stack([1 - p, p], 1), np.stack([1 - q.ravel(), q.ravel()], 1), np.tile(np.arange(sources), 4),
            [{name: str(v) for name, v in zip(names, row)} for row in set_to.reshape(-1, 3)], table,
        )  # fmt: skip
        rows = [row for row in effects(answers, names, draw, 300) if row["group"] == ALL]
        right += [row["attribute"] for row in rows] == names
        false += next(row["claimed"] for row in rows if row["attribute"] == "none")
    record(
        RESULTS,
        {"what": "ranking", "draws": draws, "right": right, "falsely_claimed": int(false)},
        cpu=cpu(),
        command="python benchmarks/audit.py ranking",
    )


def methods(given: argparse.Namespace) -> None:
    """The change of each kept classifier and the worst of the attribute's groups."""
    rows = [json.loads(line) for line in (given.run / "effects.jsonl").read_text().splitlines()]
    tested = {
        f"{r['method']}-{r['seed']}": r for r in map(json.loads, (given.run / "results.jsonl").read_text().splitlines())
    }
    recipe = load_recipe(given.run / "config.yaml")
    found = [(row, tested[row["model"]]) for row in rows if row["group"] == ALL and row["model"] in tested]
    table = pd.DataFrame(
        [{"method": r["method"], "change": row["change"][0], "flips": row["flip_rate"] - row["flip_floor"], "worst": r["worst_group_accuracy"], "average": r["average_accuracy"]} for row, r in found]
    )  # fmt: skip
    table["gap"] = table["average"] - table["worst"]
    for method, some in table.groupby("method"):
        record(
            RESULTS, {"what": "methods", "run": recipe.name, "method": method, "seeds": len(some), **{k: round(float(some[k].mean()), 4) for k in ("change", "flips", "worst", "gap")}},
            cpu=cpu(), command="cfaug audit RUN; python benchmarks/audit.py methods RUN",
        )  # fmt: skip
    record(
        RESULTS, {"what": "methods", "run": recipe.name, "classifiers": len(table), "rank_correlation_change_gap": round(float(table["change"].corr(table["gap"], method="spearman")), 4)},
        cpu=cpu(), command="cfaug audit RUN; python benchmarks/audit.py methods RUN",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = {"garments": garments, "xray": xray, "digits": digits, "ranking": ranking, "methods": methods}
    parser.add_argument("part", choices=parts)
    parser.add_argument("run", type=Path, nargs="?")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts[given.part](given)


if __name__ == "__main__":
    main()
