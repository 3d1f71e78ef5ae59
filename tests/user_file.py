"""A user's program that needs every public name of cfaug, as ``mypy --strict`` sees it. It is read, never run.

tests/test_typing.py: every name of every ``__all__`` stands here, and none of it is Any. A new public name gets a line in the
function of its room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import DataLoader

import cfaug
import cfaug.train.objectives as losses
from cfaug.causal import (
    MECHANISMS,
    ActedSCM,
    Background,
    Change,
    Discovery,
    FunctionMechanism,
    Independence,
    IndependenceTest,
    Intervention,
    Mechanism,
    Noise,
    assumption_card,
    confounding,
    cramers_v,
    diagnose,
    discover,
    falsify,
    flip,
    forecast,
    missing_counts,
    normalised_mutual_information,
    refuse_if_ancestor,
    refuse_unconfirmed,
    resample,
    scale,
    shift,
    uniform,
)
from cfaug.causal import SCM as ModelOfAttributes
from cfaug.causal import CausalGraph as Graph
from cfaug.causal import do as intervene
from cfaug.data import (
    SOURCES,
    ArrayDataset,
    AttributeDataset,
    FolderDataset,
    can_unconfound,
    load_images,
    load_padded,
    measures_of,
    open_source,
    pixel_digest,
)
from cfaug.data import Attribute as Column
from cfaug.data import Grouper as Groups
from cfaug.data import Schema as Columns
from cfaug.data.micro_batch import Sources
from cfaug.decode import (
    ActedModel,
    Capabilities,
    CounterfactualModel,
    DiffusionDecoder,
    FitReport,
    ImageMechanism,
    ImageNoise,
    ModelNoise,
    load_decoder,
)
from cfaug.judge import (
    MethodSummary,
    WorstGroup,
    adjusted_average_accuracy,
    attribute_gaps,
    average_accuracy,
    format_table,
    gap_closed,
    group_accuracy,
    read_results,
    result_row,
    summarise,
    worst_group_accuracy,
    write_results,
)
from cfaug.learn import (
    CounterfactualDataset,
    CounterfactualStream,
    Draw,
    MixingCollate,
    RandomCounterfactual,
    open_training_shards,
)
from cfaug.offline import (
    Engine,
    GenerateReport,
    LocalEngine,
    ShardReader,
    VerifyReport,
    balance_groups,
    encode_sample,
    generate,
    make_engine,
    make_plan,
    verify,
    write_shard,
)
from cfaug.offline import Plan as PlanOfRows
from cfaug.offline import PlanRow as Row
from cfaug.train import (
    METHODS,
    MODELS,
    GroupDRO,
    Method,
    MixedImages,
    Mixture,
    SmallCNN,
    StreamedImages,
    TensorImages,
    TrainedClassifier,
    TrainingSet,
    TrainingSets,
    TrainSettings,
    Validation,
    predict,
    train_classifier,
    training_set,
    validation_set,
)
from cfaug.train.in_memory import materialise


def the_top(table: pd.DataFrame) -> tuple[cfaug.SCM, cfaug.Plan]:
    schema = cfaug.Schema([cfaug.Attribute("species"), cfaug.Attribute("background")], "species", ["background"])
    graph = cfaug.CausalGraph("species <-> background; species -> image; background -> image")
    scm = cfaug.SCM(graph, schema).fit(table, seed=0)
    water: Intervention = cfaug.do(background="water")
    plan = cfaug.Plan([cfaug.PlanRow("a-0", "a.png", water, 0, 0, 0)])
    groups: pd.DataFrame = cfaug.Grouper.fit(table, schema).labels(table)
    found: dict[str, dict[str, Any]] = cfaug.group_accuracy(table["species"].tolist(), ["a"] * len(table), groups)
    worst: float = cfaug.worst_group_accuracy(found).accuracy
    print(worst, cfaug.CounterfactualDataset, cfaug.RandomCounterfactual)
    return scm, plan


def data(root: Path) -> AttributeDataset:
    schema = Columns([Column("species"), Column("age", "continuous", unit="years")], target="species")
    table = pd.DataFrame({"species": ["a", "b"], "age": [1.0, 2.0]}, index=pd.Index(["x", "y"]))
    images: npt.NDArray[np.uint8] = np.zeros((2, 8, 8, 3), np.uint8)
    held = ArrayDataset(images, table, schema.fit(table), "train")
    digest: str = pixel_digest(held.image(0))
    folder = FolderDataset(root, split="train", target="species", spurious=["background"])
    batch = assert_type(load_images(folder, [0, 1]), torch.Tensor)
    padded, mask = load_padded(folder, multiple=8)
    kept: list[str] = [name for name in SOURCES if can_unconfound(name) and not measures_of(name)]
    print(digest, batch.shape, padded.shape, mask.dtype, assert_type(folder.key(0), str), kept)
    groups = assert_type(Groups.fit(folder.table, folder.schema), Groups)
    print(groups.all_names)
    return assert_type(open_source("digits", split="train"), AttributeDataset)


def causes(table: pd.DataFrame, schema: Columns) -> ActedSCM:
    graph = Graph("age -> species; species -> image")
    refuse_unconfirmed(graph)
    refuse_if_ancestor(graph, "species", ["age"])
    parents: tuple[str, ...] = graph.parents("image")

    def forward(noise: npt.NDArray[np.float64], parents: pd.DataFrame) -> npt.NDArray[np.float64]:
        return noise[:, 0] + len(parents)

    def backward(values: pd.Series, parents: pd.DataFrame) -> npt.NDArray[np.float64]:
        return np.asarray(values, np.float64)[:, None] - len(parents)

    own: Mechanism = FunctionMechanism("age", predict=forward, abduct=backward, version="1")
    scm = assert_type(
        ModelOfAttributes(graph, schema, {"age": own, "species": next(iter(MECHANISMS))}), ModelOfAttributes
    )
    scm = scm.fit(table, seed=0)
    changes: list[Change] = [flip(), resample(), scale(2.0), shift(-1.0), uniform()]
    act: Intervention = intervene({"species": changes[0]}, age=30.0)
    noise = assert_type(scm.abduct(table, seed=0), Noise)
    acted = assert_type(scm.act(act), ActedSCM)
    after = assert_type(acted.predict(noise), pd.DataFrame)
    background = Background.read(forbidden=["species -> age"])
    found: Discovery = discover(table, schema, "pc", background=background)
    drawn: Graph = found.graph(parents)
    tests = IndependenceTest(table, schema)
    verdict: Independence = tests.test("age", "species")
    numbers: Sequence[float] = [
        verdict.p_value, cramers_v(table, schema, "age", "species"),
        normalised_mutual_information(table, schema, "age", "species"), *confounding(table, schema).values(),
    ]  # fmt: skip
    told: Sequence[Mapping[str, Any]] = [
        assumption_card(scm, table), diagnose(table, schema, drawn), falsify(table, schema, graph),
        forecast(table, schema, scm, [("older", act)]), missing_counts(table, schema),
    ]  # fmt: skip
    print(len(after), numbers, told)
    return acted


class Constant:
    """A user's own image mechanism."""

    canvas, report, device, dtype = None, None, "cpu", "float32"
    capabilities = Capabilities("round_trip", max_side=8)

    def __init__(self, schema: Columns, parents: tuple[str, ...]) -> None:
        self.schema, self.parents = schema, parents

    def abduct(self, sources: Sources) -> torch.Tensor:
        return sources.images

    def predict(self, noise: Any, attributes: pd.DataFrame, affected: Any = None, strength: Any = None) -> torch.Tensor:
        return torch.zeros(len(attributes), 3, 8, 8)

    @property
    def digest(self) -> str:
        return "0" * 64

    def save(self, directory: str | Path) -> None:
        raise NotImplementedError


def images(dataset: AttributeDataset, scm: ModelOfAttributes, place: Path) -> CounterfactualModel:
    own: ImageMechanism = Constant(dataset.schema, ("species",))
    decoder = assert_type(DiffusionDecoder(dataset.schema, own.parents).fit(dataset, seed=0), DiffusionDecoder)
    report: FitReport | None = decoder.report
    decoder.save(place)
    model = assert_type(CounterfactualModel(scm, assert_type(load_decoder(place), ImageMechanism)), CounterfactualModel)
    noise = assert_type(model.abduct(load_images(dataset), dataset.table, keys=["a"]), ModelNoise)
    state: ImageNoise = noise.image
    acted: ActedModel = model.act(intervene(background="water"))
    pictures, table = acted.predict(noise)
    print(report, state, assert_type(pictures, torch.Tensor).shape, assert_type(table, pd.DataFrame).shape)
    model.save(place)
    return assert_type(CounterfactualModel.load(place), CounterfactualModel)


def double(shard: int) -> int:
    return 2 * shard


def offline(model: CounterfactualModel, dataset: AttributeDataset, out: Path) -> ShardReader:
    plan: PlanOfRows = balance_groups(dataset.table, dataset.schema, per_image=1, null_fraction=0.5, seed=0)
    other: PlanOfRows = make_plan("flip", dataset.table, dataset.schema)
    rows: list[Row] = [*plan, *other]
    report: GenerateReport = generate(model, dataset, plan, out, engine="local", workers=2)
    checked: VerifyReport = verify(out, plan)
    engines: list[Engine] = [LocalEngine(2), make_engine("local", 2)]
    done: list[int | None] = [outcome.result for outcome in engines[0].map(double, [1, 2])]
    reader = ShardReader(out / "shards")
    sample = reader.sample(0)
    fields: dict[str, Any] = encode_sample(sample)
    name: str = write_shard(out, "cf-train-000000.tar", [sample], "p" * 64, "m" * 64).name
    print(
        len(rows),
        report.images,
        checked.ok,
        done,
        fields,
        name,
        assert_type(reader.image(0), npt.NDArray[np.uint8]).shape,
    )
    return reader


def to_tensor(picture: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).float() / 255


def loops(base: Any, reader: ShardReader) -> Iterator[torch.Tensor]:
    """The ways into a training loop that is there already."""
    mixed = CounterfactualDataset(base, reader, p=0.5, seed=0)
    draw: Draw = mixed.provenance(0)
    held: MixedImages = materialise(mixed)
    change: Callable[[Any], Any] = RandomCounterfactual(reader, p=0.5)
    for epoch in range(3):
        mixed.set_epoch(epoch)
        loader: DataLoader[Any] = DataLoader(mixed, 32)
        for batch, _ in loader:
            yield change(batch)
    print(draw.kind, len(held))


def pipelines(reader: ShardReader, validation: torch.utils.data.Dataset[Any]) -> MixingCollate:
    return MixingCollate(open_training_shards(reader, held_out=[validation]), p=0.5, transform=to_tensor, seed=1)


def streams(reader: ShardReader) -> Iterator[torch.Tensor]:
    stream = CounterfactualStream(
        reader, 64, transform=to_tensor, classes=["landbird", "waterbird"], kinds=["counterfactual"]
    )
    stream.set_epoch(1)
    for images, _ in DataLoader(stream, batch_size=None, num_workers=4):
        yield images


def training(dataset: AttributeDataset, reader: ShardReader, pool: torch.utils.data.Dataset[Any]) -> TrainedClassifier:
    groups = Groups.fit(dataset.table, dataset.schema)
    method: Method = METHODS["cfaug"]
    small: torch.nn.Module = SmallCNN(3, (8, 8), 2)
    mixture = Mixture(p=0.4, null_p=0.1)
    sets = TrainingSets(dataset, groups, reader)
    train: TrainingSet = training_set(method.name, dataset, groups, reader, mixture)
    options: list[TrainingSet] = [
        sets.of(method.name, mixture), StreamedImages.from_dataset(pool), TensorImages(load_images(dataset), torch.zeros(2)),
    ]  # fmt: skip
    val: Validation = validation_set(dataset, groups)
    settings = TrainSettings(epochs=1, model=next(iter(MODELS)))
    net = assert_type(train_classifier(method.name, train, val, settings), TrainedClassifier)
    said = assert_type(predict(small, val.images), torch.Tensor)
    print(len(options), said.shape)
    return net


def objectives(logits: torch.Tensor, targets: torch.Tensor, codes: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    robust = GroupDRO(4)
    total = assert_type(losses.erm_loss(logits, targets), torch.Tensor)
    one = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    weights: list[torch.Tensor] = [
        losses.class_weights(targets), losses.group_weights(codes), losses.importance_weights(codes),
        losses.jtt_weights(logits.argmax(1), targets), losses.as_columns(codes),
    ]  # fmt: skip
    total = total + losses.group_weighted_loss(one, codes, weights[2]) + losses.GroupDRO(4)(one, codes)
    mixed, soft = losses.lisa_mix(x, targets, codes, classes=2)
    total = total + losses.soft_target_loss(logits, soft) + losses.paired_consistency_loss(x, mixed, targets)
    last: losses.LastLayer = losses.dfr(x, targets, codes)
    steps: list[losses.Epoch] = list(losses.from_fake_to_real([0], [1], 1, 1))
    print(last.predict(x).shape, steps, robust)
    return total


def judged(table: pd.DataFrame, groups: Groups, said: Sequence[str], path: Path) -> WorstGroup:
    truth = table[groups.target].tolist()
    each = group_accuracy(truth, said, groups.labels(table))
    worst = assert_type(worst_group_accuracy(each), WorstGroup)
    row: dict[str, Any] = result_row(
        recipe="r", method="erm", seed=0, targets=truth, predictions=said, table=table, grouper=groups, train_table=table,
        train_seconds=1.0, selection="last",
    )  # fmt: skip
    write_results(path, [row])
    rows = assert_type(read_results(path), list[dict[str, Any]])
    summaries: list[MethodSummary] = summarise(rows)
    gap: float | None = gap_closed(0.9, 0.6, 0.95)
    shown: float = average_accuracy(truth, said) + adjusted_average_accuracy(each, groups.labels(table))
    print(summaries, gap, shown, attribute_gaps(rows, ["background"]), assert_type(format_table(rows), str))
    return worst
