"""What a run says of its assumptions, and what it refuses because of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import call, folder, folder_recipe

from cfaug.causal import SCM, CausalGraph, do
from cfaug.config import load_recipe
from cfaug.decode import CounterfactualModel
from cfaug.errors import UsageError
from cfaug.offline import Plan, PlanRow, generate
from cfaug.stages import fit, open_run, plan
from cfaug.stages.checked_inputs import open_inputs

EDGES = "species -> image; background -> image"


def test_the_diagnosis_tests_the_graph_and_foretells_the_plan(finished: Path) -> None:
    found = json.loads((finished / "diagnosis.json").read_text())
    assert found["falsification"]["correction"] == "holm"
    planned = found["forecast"]["spurious"]["background"]
    assert planned["counterfactual"]["nmi"] < 0.01 < 0.1 < planned["factual"]["nmi"]
    assert found["forecast"]["rows"] == len(Plan.load(finished / "plan"))
    assert all(part in "\n".join(found["text"]) for part in ("dependence on species", "the graph implies", "plan:"))
    card = json.loads((finished / "assumptions.json").read_text())
    assert (finished / "ASSUMPTIONS.md").read_text() == card["text"]
    assert set(card["mechanisms"]) == {"species", "background", "glow"}


def test_nothing_is_generated_from_an_edge_that_nobody_confirmed(birds: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, graph=f"species ->? background; {EDGES}")
    out = tmp_path / "out"
    for command in ("run", "generate", "train"):
        answer = call(capsys, command, recipe, "--out", out)
        assert answer.code == 2
        assert answer.err.count("\n") == 1
        assert "proposals of a discovery: species ->? background; remove the ?" in answer.err
    assert not (out / "model").exists()  # said before anything is fitted
    answer = call(capsys, "diagnose", recipe, "--out", out)  # looking is free
    assert answer.code == 0
    assert "nobody has confirmed species ->? background" in answer.out
    with open_run(load_recipe(recipe), out, progress=False) as run:
        model = fit(run)
        with pytest.raises(UsageError, match="expected confirmed edges"):
            model.act(do(background="water"))
        with pytest.raises(UsageError, match="expected confirmed edges"):
            generate(model, run.inputs.train, plan(run), tmp_path / "own", workers=0, progress=False)
    assert not (tmp_path / "own").exists()


def test_an_unsuited_mechanism_is_refused_first(birds: Path, tmp_path: Path, capsys: Any) -> None:
    for mechanisms, word in (
        ({"background": "linear"}, "'background' is categorical"),
        ({"backgruond": "categorical"}, "did you mean background"),
        ({"background": "magic"}, "expected the name of a mechanism, got 'magic'"),
    ):
        recipe = folder_recipe(tmp_path / "r.yaml", birds, scm={"mechanisms": mechanisms})
        answer = call(capsys, "fit", recipe, "--out", tmp_path / "out")
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert word in answer.err
        assert not (tmp_path / "out").exists()


def test_a_plan_that_would_need_another_label_is_refused(finished: Path, recipe: Path, tmp_path: Path) -> None:
    model, train = CounterfactualModel.load(finished / "model"), open_inputs(load_recipe(recipe), False).train
    relabelled = Plan([PlanRow("one", train.key(0), do(species="water"), 1, 0, 0)])
    with pytest.raises(UsageError, match="training keeps a source's label"):
        generate(model, train, relabelled, tmp_path / "out", workers=0, progress=False)


def test_look_confirm_and_run_in_one_directory(birds: Path, tmp_path: Path, capsys: Any) -> None:
    out, path = tmp_path / "out", tmp_path / "r.yaml"
    recipe = folder_recipe(path, birds, graph=f"species; {EDGES}", discover={"bootstraps": 0})
    for command in ("diagnose", "discover"):
        assert call(capsys, command, recipe, "--out", out).code == 0
    offered = json.loads((out / "discovery.json").read_text())["graph"]
    assert "?" in offered
    unconfirmed = folder_recipe(path, birds, graph=offered, discover={"bootstraps": 0})
    assert "expected confirmed edges" in call(capsys, "run", unconfirmed, "--out", out).err
    confirmed = folder_recipe(path, birds, graph=f"species -> background; {EDGES}", discover={"bootstraps": 0})
    answer = call(capsys, "run", confirmed, "--out", out)
    assert answer.code == 0, answer.err
    assert json.loads((out / "run.json").read_text())["fingerprint"] == load_recipe(confirmed).fingerprint()
    assert load_recipe(out / "config.yaml").graph == load_recipe(confirmed).graph
    assert (out / "discovery.json").exists()
    page = (out / "report.html").read_text()
    assert "iscover" in page
    # now that there is a model, another graph is another run
    another = folder_recipe(path, birds, graph=f"species; {EDGES}", discover={"bootstraps": 0})
    answer = call(capsys, "diagnose", another, "--out", out)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "holds a run of a different configuration" in answer.err


def test_a_look_at_other_images_keeps_nothing_of_the_first(birds: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    recipe = folder_recipe(tmp_path / "r.yaml", birds, discover={"bootstraps": 0})
    assert call(capsys, "discover", recipe, "--out", out).code == 0
    other = folder(tmp_path / "others" / birds.name, n=70)
    again = folder_recipe(tmp_path / "r.yaml", other, discover={"bootstraps": 0})
    assert call(capsys, "diagnose", again, "--out", out).code == 0
    assert not (out / "discovery.json").exists()


def test_a_recipe_states_the_order_of_an_ordinal(birds: Path, tmp_path: Path, capsys: Any) -> None:
    attributes = {"target": "species", "spurious": ["background"], "kinds": {"background": "ordinal"}}
    order = {"values": {"background": ["water", "land"]}}
    recipe = folder_recipe(tmp_path / "r.yaml", birds, attributes={**attributes, **order})
    assert open_inputs(load_recipe(recipe), False).schema["background"].values == ("water", "land")
    recipe = folder_recipe(tmp_path / "r.yaml", birds, attributes=attributes)
    answer = call(capsys, "diagnose", recipe, "--out", tmp_path / "other")
    assert (answer.code != 0, answer.err.count("\n")) == (True, 1)
    assert "attributes.values" in answer.err


def test_a_plan_on_a_cause_of_the_target_is_refused(finished: Path, recipe: Path, tmp_path: Path) -> None:
    model, train = CounterfactualModel.load(finished / "model"), open_inputs(load_recipe(recipe), False).train
    graph = CausalGraph(f"background -> species; {'; '.join(f'{p} -> image' for p in model.decoder.parents)}")
    other = CounterfactualModel(SCM(graph, model.schema).fit(train.table), model.decoder)
    on_a_cause = Plan([PlanRow("one", train.key(0), do(background="water"), 1, 0, 0)])
    with pytest.raises(UsageError, match="the graph says background -> species"):
        generate(other, train, on_a_cause, tmp_path / "out", workers=0, progress=False)
    assert not (tmp_path / "out").exists()
