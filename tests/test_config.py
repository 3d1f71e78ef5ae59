"""The configuration: what a recipe may say, and the one line that each mistake gets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cfaug.config import Recipe, check_ranges, load_recipe, option_names
from cfaug.errors import UsageError

REPO = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPO / "recipes").glob("*.yaml"))
GRAPH = 'graph: "digit <-> foreground; digit -> image; foreground -> image; background -> image"\n'


def load(folder: Path, text: str | bytes = "", *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes(GRAPH.encode() + text.encode() if isinstance(text, str) else text)
    return load_recipe(path, overrides)


def refusal(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    check_ranges(recipe)
    assert recipe.name == path.stem
    hints = {name: type(getattr(recipe.train, name)) for name in ("epochs", "learning_rate", "bf16")}
    assert hints == {"epochs": int, "learning_rate": float, "bf16": bool}  # 1e-2 is text to YAML, a number to us


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "double_colored_mnist", "folder"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {}", "unknown key 'trian' in the recipe; did you mean train?"),
        ("train: {epoch: 3}", "unknown key 'train.epoch' in the recipe; did you mean epochs?"),
        ("data: {roots: x}", "'data.roots' in the recipe; did you mean root?"),
        ("decoder: {chanels: [8]}", "'decoder.chanels' in the recipe; did you mean channels?"),
        ("attributes: {spurius: [a]}", "did you mean spurious?"),
        ("plan: {per_images: 1}", "did you mean per_image?"),
        ("generate: {worker: 1}", "did you mean workers?"),
        ("evaluate: {imagess: 1}", "did you mean images"),
        ("1: 2", "unknown key '1'"),
        ("train: [a]", "train must be a mapping of settings, but ['a'] came"),
        ("data:", "data must be a mapping of settings, but None came"),
    ],
)
def test_an_unknown_key_gets_its_near_names(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {seeds: 3}", "train.seeds expects list[int], but 3 came"),
        ("train: {epochs: 2.5}", "train.epochs expects int, but 2.5 came"),
        ("train: {epochs: true}", "train.epochs expects int, but True came"),
        ("train: {epochs: many}", "train.epochs expects int, but many came"),
        ("train: {bf16: 3}", "train.bf16 expects bool"),
        ("seed: 1.5", "seed expects int"),
        ("data: {rho: high}", "data.rho expects float | dict[str, float] | None, but high came"),
        ("attributes: {kinds: {age: 3}}", "attributes.kinds expects dict[str, str], but 3 came"),
        ("attributes: {spurious: background}", "attributes.spurious expects list[str], but background came"),
        ("train: {epochs: null}", "train.epochs needs a value"),
    ],
)
def test_a_wrong_type_names_the_setting(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


def test_an_empty_graph_is_refused_however_it_is_written(tmp_path: Path) -> None:
    assert "graph needs a value" in refusal(tmp_path, b"graph: null")
    assert "the recipe needs a graph" in refusal(tmp_path, b"graph: ' '")
    assert "the recipe needs a graph" in refusal(tmp_path, b"name: x")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data: {rho: {foreground: 1.5}}", "data.rho foreground must be between 0 and 1"),
        ("data: {rho: .nan}", "data.rho"),
        ("data: {train_images: 0}", "data.train_images"),
        ("seed: -1", "seed must be a number from 0 up, but -1 came"),
        ("train: {seeds: [0, -1]}", "train.seeds"),
        ("train: {seeds: []}", "train.seeds must list at least one"),
        ("train: {seeds: [1, 1]}", "1 came twice"),
        ("train: {methods: []}", "train.methods must list at least one"),
        ("train: {methods: [erm, erm]}", "'erm' came twice"),
        ("train: {p: 0.8, null_p: 0.3}", "train.p + train.null_p"),
        ("train: {p: 1.1}", "train.p must be between 0 and 1"),
        ("train: {epochs: 0}", "train.epochs must be a number from 1 up"),
        ("train: {learning_rate: .inf}", "train.learning_rate"),
        ("train: {weight_decay: -1}", "train.weight_decay"),
        ("train: {groups: all}", "train.groups must be one of each, cross, but 'all' came"),
        ("attributes: {spurious: []}", "attributes.spurious must list at least one"),
        ("attributes: {spurious: [digit]}", "'digit' is both target and spurious"),
        ("decoder: {kind: gan}", "decoder.kind must be one of diffusion"),
        ("decoder: {structure: edges}", "decoder.structure must be one of layout, gradient, none"),
        ("decoder: {channels: [10]}", "decoder.channels must list multiples of 8, but [10] came"),
        ("decoder: {channels: []}", "decoder.channels"),
        ("decoder: {patch: 0}", "decoder.patch"),
        ("decoder: {steps: 0}", "decoder.steps"),
        ("decoder: {seconds: .nan}", "decoder.seconds"),
        ("decoder: {learning_rate: 0}", "decoder.learning_rate"),
        ("decoder: {guidance: .inf}", "decoder.guidance"),
        ("plan: {null_fraction: 1}", "plan.null_fraction must be between 0 and 0.99"),
        ("plan: {per_image: 0}", "plan.per_image"),
        ("plan: {strategy: mirror}", "plan.strategy must be one of balance"),
        ("generate: {engine: dask}", "generate.engine must be one of local"),
        ("generate: {workers: -1}", "generate.workers"),
        ("evaluate: {cycles: 0}", "evaluate.cycles"),
        ("name: ../x", "name must be letters, digits"),
        ("name: ''", "name must be letters, digits"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, text: str, name: str) -> None:
    assert name in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00", b"a: \x00", b"a: [", b"- 1", b"", b"a: b: c", b"{[]: 1}", b"\tname: x",
        b"data: {root: 2020-13-45}", b"x: !!python/object/apply:os.system [id]",
    ],
)  # fmt: skip
def test_bad_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    assert "recipe.yaml" in refusal(tmp_path, content)


def test_a_missing_recipe_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file.*cfaug recipes ls"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("--train.epochs=3", "train.epochs", 3),
        ("--train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("--train.seeds=[4, 5]", "train.seeds", [4, 5]),
        ("--decoder.seconds=null", "decoder.seconds", None),
        ("--data.root=2020", "data.root", "2020"),
        ("--data.root=/a b: c", "data.root", "/a b: c"),
        ("--data.rho={foreground: 0.5}", "data.rho", {"foreground": 0.5}),
        ("--data.rho.foreground=0.5", "data.rho", {"foreground": 0.5}),
        ("--attributes.kinds.age=continuous", "attributes.kinds", {"age": "continuous"}),
        ("--graph=digit -> image; a -> image", "graph", "digit -> image; a -> image"),
    ],
)
def test_an_override_wins_over_the_file(tmp_path: Path, override: str, name: str, value: Any) -> None:
    recipe: Any = load(tmp_path, "train: {epochs: 9, seeds: [1]}\ndecoder: {seconds: 5}", override)
    for part in name.split("."):
        recipe = getattr(recipe, part)
    assert recipe == value
    assert type(recipe) is type(value)


def test_overrides_leave_the_rest_of_the_file(tmp_path: Path) -> None:
    recipe = load(tmp_path, "train: {epochs: 9, p: 0.5}", "--train.epochs=3")
    assert (recipe.train.epochs, recipe.train.p) == (3, 0.5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--train.epoch=3", "unknown option --train.epoch; did you mean train.epochs"),
        ("--foo=1", "unknown option --foo; known: name"),
        ("--train={epochs: 3}", "--train is a group of settings; set one of them"),
        ("--train=other.yaml", "--train is a group of settings"),
        ("--train.epochs", "--train.epochs needs a value: write --train.epochs=VALUE"),
        ("--train.epochs=x", "train.epochs expects int, but x came"),
        ("--config=x.yaml", "unknown option --config"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, "", override)


def test_every_option_can_be_written_on_the_command_line(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    for name in option_names():
        value: Any = recipe
        for part in name.split("."):
            value = getattr(value, part)
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        assert load(tmp_path, "", f"--{name}={text if value is not None else 'null'}") == recipe


def test_what_is_written_to_config_yaml_reads_back_the_same(tmp_path: Path) -> None:
    for path in RECIPES:
        recipe = load_recipe(path, ["--decoder.learning_rate=1e-5"])
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        again = load_recipe(tmp_path / "config.yaml")
        assert again == recipe
        assert again.fingerprint() == recipe.fingerprint()


def test_the_fingerprint_leaves_out_what_changes_no_result(tmp_path: Path) -> None:
    ours = load(tmp_path, "", "--data.root=/here/images").fingerprint()
    assert load(tmp_path, "", "--data.root=/elsewhere/images", "--generate.workers=7").fingerprint() == ours
    recipe = load(tmp_path, "", "--data.root=/here/images")
    engine = dataclasses.replace(recipe, generate=dataclasses.replace(recipe.generate, engine="other"))
    assert engine.fingerprint() == ours
    assert load(tmp_path, "", "--data.root=/here/images", "--train.seeds=[4, 5]").fingerprint() == ours


def test_an_autoencoder_may_move_but_not_be_another(tmp_path: Path) -> None:
    latents = "decoder: {space: latents}"
    here, moved, other, none = (
        load(tmp_path, latents, f"--decoder.autoencoder={place}").fingerprint()
        for place in ("/here/vae", "/else/where/vae", "/here/other", "null")
    )
    assert here == moved
    assert len({here, other, none}) == 3


FREE = {
    "generate.workers",
    "generate.engine",
    "generate.destination",
    "generate.retries",
    "generate.options",
    "generate.tensorboard",
    "train.methods",
    "train.seeds",
    "decoder.checkpoint_seconds",
}  # of seeds and methods, more only add rows


FREE |= {name for name in option_names() if name.startswith("discover.")}  # proposes a graph, makes nothing


@given(st.sampled_from(sorted(set(option_names()) - FREE)))
def test_the_fingerprint_covers_everything_else(name: str) -> None:
    recipe = Recipe(graph="digit -> image")
    *parents, leaf = name.split(".")
    owner: Any = getattr(recipe, parents[0]) if parents else recipe
    changed: Any = dataclasses.replace(owner, **{leaf: "something else"})
    whole = dataclasses.replace(recipe, **{parents[0]: changed}) if parents else changed
    assert whole.fingerprint() != recipe.fingerprint()
