"""The configuration: what a recipe may say, and the one line that each mistake gets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfaug.config import DecoderConfig, Recipe, load_recipe, option_names
from cfaug.errors import UsageError
from cfaug.recipe_file import dump_yaml, read_yaml

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
    assert recipe.name == path.stem
    hints = {name: type(getattr(recipe.train, name)) for name in ("epochs", "learning_rate", "bf16")}
    assert hints == {"epochs": int, "learning_rate": float, "bf16": bool}  # 1e-2 is text to YAML, a number to us


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "double_colored_mnist", "folder"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys
        ("trian: {}", "unknown key 'trian' in the recipe; did you mean train?"),
        ("train: {epoch: 3}", "unknown key 'train.epoch' in the recipe; did you mean epochs?"),
        ("generate: {worker: 1}", "did you mean workers?"),
        ("1: 2", "unknown key '1'"),
        ("train: [a]", "train: expected a group of settings, got ['a']; indent them below it"),
        ("data:", "data: expected a group of settings, got None"),
        # what older recipes had
        ("decoder: {semantic: 8}", "decoder.semantic was removed; remove the line"),
        ("decoder: {distil_pairs: 2}", "decoder.distil_pairs was removed; remove the line"),
        ("decoder: {distil_share: 0.5}", "decoder.distil_share was removed; remove the line"),
        ("decoder: {kind: distilled}", "decoder.kind: distilled was removed; write kind: diffusion"),
        ("discover: {method: dagma}", "discover.method: dagma was removed; write method: pc, fci or ges"),
        ("decoder: {space: latents}", "training one here was removed; name a local directory"),
        # a key given twice
        ("seed: 1\nseed: 2", "at line 3: key 'seed' is given twice, in lines 2 and 3; keep one of them"),
        ("train:\n  epochs: 1\n  p: 0.5\n  epochs: 2", "key 'epochs' is given twice, in lines 3 and 5"),
        ("train: {}\ntrain: {epochs: 2}", "key 'train' is given twice"),
        ("plan: {joint: [{background: red, background: blue, share: 1}]}", "key 'background' is given twice"),
        # types
        (
            "train: {seeds: 3}",
            "train.seeds: expected a list of whole numbers from 0 to 9007199254740991, at least 1, got 3; write [3]",
        ),
        ("train: {epochs: 2.5}", "train.epochs: expected a whole number of at least 1, got 2.5; write for example 25"),
        ("train: {epochs: true}", "train.epochs: expected a whole number of at least 1, got True"),
        ("train: {epochs: many}", "train.epochs: expected a whole number of at least 1, got 'many'"),
        ("train: {epochs: null}", "train.epochs: expected a whole number of at least 1, got nothing"),
        ("train: {bf16: 3}", "train.bf16: expected true or false, got 3; write true or false"),
        ("train: {bf16: yes}", "train.bf16: expected true or false, got 'yes'; write true or false"),
        ("seed: 1.5", "seed: expected a whole number"),
        ("seed: 12:30", "seed: expected a whole number from 0 to 9007199254740991, got '12:30'"),
        ("seed: 01", "seed: expected a whole number from 0 to 9007199254740991, got '01'"),
        (
            "data: {rho: high}",
            "data.rho: expected a number from 0 to 1 or a mapping of names to numbers from 0 to 1 or null",
        ),
        ("attributes: {kinds: {age: 3}}", "attributes.kinds.age: expected text, got 3; quote it: '3'"),
        (
            "attributes: {spurious: background}",
            "attributes.spurious: expected a list of texts, got 'background'; write [background]",
        ),
        (
            "attributes: {values: {foreground: [true, false]}}",
            "attributes.values.foreground: expected text or a number, got True; quote it: 'true'",
        ),
        (
            "plan: {joint: [{background: false, share: 1}]}",
            "plan.joint.background: expected text or a number, got False; quote it: 'false'",
        ),
        ("name: 2020", "name: expected text, got 2020; quote it: '2020'"),
        ("generate: {options: {a: !!timestamp 2020-01-01}}", "generate.options.a"),
        # ranges and choices
        ("data: {rho: {foreground: 1.5}}", "data.rho.foreground: expected a number from 0 to 1, got 1.5"),
        ("data: {rho: .nan}", "data.rho"),
        ("data: {train_images: 0}", "data.train_images: expected a whole number of at least 1"),
        ("seed: -1", "seed: expected a whole number from 0"),
        ("train: {seeds: [0, -1]}", "train.seeds: expected a whole number from 0 to 9007199254740991, got -1"),
        ("train: {seeds: [18446744073709551616]}", "train.seeds: expected a whole number from 0"),
        ("train: {seeds: []}", "train.seeds: expected a list of"),
        ("train: {seeds: [1, 1]}", "train.seeds: expected each entry once, got 1 twice"),
        ("train: {methods: []}", "train.methods: expected a list of"),
        ("train: {methods: [erm, erm]}", "got 'erm' twice"),
        ("train: {p: 0.8, null_p: 0.3}", "train.p + train.null_p: expected at most 1, got 1.1"),
        ("train: {p: 1.1}", "train.p: expected a number from 0 to 1, got 1.1"),
        ("train: {learning_rate: .inf}", "train.learning_rate: expected a number from 1e-09 to 100, got inf"),
        ("train: {weight_decay: -1}", "train.weight_decay"),
        ("train: {groups: all}", "train.groups: expected one of each, cross, got 'all'; known: each, cross"),
        ("attributes: {spurious: []}", "attributes.spurious: expected at least one attribute, got none"),
        ("attributes: {spurious: [digit]}", "'digit' is both target and spurious"),
        ("decoder: {kind: gan}", "decoder.kind: expected one of diffusion"),
        ("decoder: {structure: edges}", "decoder.structure: expected one of layout, gradient, none"),
        ("decoder: {channels: [10]}", "decoder.channels: expected a whole number divisible by 8 of at least 8, got 10"),
        ("decoder: {channels: []}", "decoder.channels: expected a list"),
        ("decoder: {seconds: .nan}", "decoder.seconds: expected a number of at least 0.1 or null, got nan"),
        ("decoder: {steps: 0}", "decoder.steps"),
        ("decoder: {guidance: .inf}", "decoder.guidance"),
        ("decoder: {steps: 1, depth: {background: 0.5}}", "decoder.depth of background is 0.5, but decoder.steps is 1"),
        ("decoder: {drop_attribute: 0, guidance: 2}", "decoder.guidance is 2, but decoder.drop_attribute is 0"),
        ("plan: {null_fraction: 1}", "plan.null_fraction: expected a number from 0 to 0.99, got 1"),
        ("plan: {null_fraction: 0}", "plan.null_fraction is 0, so there will be no reconstructions"),
        ("plan: {strategy: mirror}", "plan.strategy: expected one of balance, uniform"),
        ("generate: {engine: torchrum}", "did you mean torchrun?"),
        ("generate: {workers: -1}", "generate.workers"),
        (
            "generate: {samples_per_shard: 100001}",
            "generate.samples_per_shard: expected a whole number from 1 to 100000",
        ),
        ("evaluate: {cycles: 0}", "evaluate.cycles"),
        ("name: ../x", "name: expected letters, digits"),
        ("name: ''", "name: expected letters, digits"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


def test_an_empty_graph_is_refused_however_it_is_written(tmp_path: Path) -> None:
    assert "graph: expected text, got nothing" in refusal(tmp_path, b"graph: null")
    assert "graph: expected the causes" in refusal(tmp_path, b"graph: ' '")
    assert "graph: expected the causes" in refusal(tmp_path, b"name: x")


WORDS = [
    "no",
    "Yes",
    "on",
    "OFF",
    "y",
    "01",
    "0o7",
    "0x1F",
    "12:30",
    "1_000",
    "2020-01-01",
    "2020-01-01 10:00:00",
    "1e-5",
    "null-ish",
]


@pytest.mark.parametrize("word", WORDS)
def test_what_only_yaml_1_1_reads_otherwise_stays_text(tmp_path: Path, word: str) -> None:
    text = f"attributes: {{values: {{foreground: [{word!r}]}}}}\nplan: {{joint: [{{foreground: {word!r}, share: 1}}]}}"
    quoted = load(tmp_path, text)
    assert quoted.attributes.values["foreground"] == [word]
    if word != "1e-5":  # a number to us, as it is to everybody but YAML
        assert load(tmp_path, text.replace("'", "")) == quoted
    for read in (read_yaml, lambda text, _: yaml.safe_load(text)):
        assert read(dump_yaml(quoted.to_dict()), "") == quoted.to_dict()
    json.dumps(quoted.to_dict())


def test_a_group_checks_its_settings_in_python() -> None:
    assert DecoderConfig(channels=(8, 16)).channels == [8, 16]  # type: ignore[arg-type]
    for settings, expected in (
        ({"steps": 0}, "decoder.steps: expected a whole number from 1 to 1000, got 0"),
        ({"chanels": [8]}, "unknown setting 'decoder.chanels'; did you mean channels?"),
        ({"sampler": "euler"}, "decoder.sampler: expected one of reversible, reversible_euler, midpoint"),
        ({"steps": 1, "depth": {"a": 0.5}}, "decoder.depth of a"),
    ):
        for make in (DecoderConfig, lambda **changes: dataclasses.replace(DecoderConfig(), **changes)):
            with pytest.raises(UsageError) as caught:
                make(**settings)
            assert expected in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00", b"a: \x00", b"a: [", b"- 1", b"", b"a: b: c", b"{[]: 1}", b"\tname: x",
        b"a: " + b"[" * 3000, b"x: !!python/object/apply:os.system [id]",
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
        ("--attributes.values.foreground=[no, 01]", "attributes.values", {"foreground": ["no", "01"]}),
        ("--data.root='2020'", "data.root", "2020"),
        ("--data.root=/a #1", "data.root", "/a #1"),
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
        ("--train.epochs=x", "train.epochs: expected a whole number of at least 1, got 'x'"),
        ("--config=x.yaml", "unknown option --config"),
        ("--train.epochs.x=3", "unknown option --train.epochs.x"),
        ("--decoder.semantic=0", "decoder.semantic was removed"),
        ("--decoder.kind=distilled", "decoder.kind: distilled was removed"),
        ("--train.seeds=[1", "--train.seeds is not valid YAML"),
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
        text = dump_yaml(value, flow=True)
        assert load(tmp_path, "", f"--{name}={text if value is not None else 'null'}") == recipe


def test_what_is_written_to_config_yaml_reads_back_the_same(tmp_path: Path) -> None:
    for path in RECIPES:
        recipe = load_recipe(path, ["--decoder.learning_rate=1e-5"])
        (tmp_path / "config.yaml").write_text(dump_yaml(recipe.to_dict()))
        again = load_recipe(tmp_path / "config.yaml")
        assert again == recipe
        assert again.fingerprint() == recipe.fingerprint()


def test_the_fingerprint_leaves_out_what_changes_no_result(tmp_path: Path) -> None:
    ours = load(tmp_path, "", "--data.root=/here/images").fingerprint()
    assert load(tmp_path, "", "--data.root=/elsewhere/images", "--generate.workers=7").fingerprint() == ours
    recipe = load(tmp_path, "", "--data.root=/here/images")
    engine = dataclasses.replace(recipe, generate=dataclasses.replace(recipe.generate, engine="ray"))
    assert engine.fingerprint() == ours
    assert load(tmp_path, "", "--data.root=/here/images", "--train.seeds=[4, 5]").fingerprint() == ours


def test_an_autoencoder_may_move_but_not_be_another(tmp_path: Path) -> None:
    latents = "decoder: {space: latents}"
    here, moved, other = (
        load(tmp_path, latents, f"--decoder.autoencoder={place}").fingerprint()
        for place in ("/here/vae", "/else/where/vae", "/here/other")
    )
    assert here == moved
    assert here != other


FREE = {
    "generate.workers",
    "generate.engine",
    "generate.destination",
    "generate.retries",
    "generate.options",
    "generate.tensorboard",
    "train.methods",
    "train.seeds",
    "train.keep",
    "decoder.checkpoint_seconds",
    "data.memory_gb",
    "data.workers",
}  # of seeds and methods, more only add rows


FREE |= {name for name in option_names() if name.startswith("discover.")}  # proposes a graph, makes nothing


PLAIN = Recipe(graph="digit -> image").fingerprint()


@pytest.mark.parametrize("name", sorted(set(option_names()) - FREE))
def test_the_fingerprint_covers_everything_else(name: str) -> None:
    content = Recipe(graph="digit -> image").to_dict()
    *parents, leaf = name.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[leaf] = "something else"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "to_dict", lambda self: content)
        assert Recipe(graph="digit -> image").fingerprint() != PLAIN
