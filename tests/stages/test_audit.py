"""``cfaug audit``: a run's own classifiers and files of every kind, asked with the run's counterfactuals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from helpers.layered import write_folder
from helpers.tiny_run import call, merged
from safetensors.torch import save_file
from torch import nn

from cfaug.cli import main
from cfaug.offline import ShardReader

SIDE = 24
RECIPE: dict[str, Any] = {
    "name": "scenes",
    "data": {"source": "folder", "masks": "mask"},
    "attributes": {"target": "shape", "spurious": ["ground", "colour"]},
    "graph": "shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image",
    "decoder": {"kind": "layered", "layers": {"background": ["ground"], "foreground": ["colour"]}},
    "plan": {"per_image": 4, "null_fraction": 0},
    "gate": {"enabled": False},
    "generate": {"workers": 0, "samples_per_shard": 200, "batch_size": 32},
    "train": {"methods": ["erm", "cfaug"], "seeds": [0], "epochs": 1, "null_p": 0},
    "evaluate": {"images": 12, "cycles": 2},
}


class Reddish(nn.Module):
    """Classes by how red the middle is, and by nothing else: it uses the colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        middle = images[:, :, 9:15, 9:15].mean((2, 3))
        lean = 2 * (middle[:, 0] - middle[:, 2])
        return torch.stack([lean, -lean], dim=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on 64 scenes, four composites of each."""
    place = tmp_path_factory.mktemp("audit")
    root = write_folder(place / "data", train=64)
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(merged(RECIPE, {"data": {"root": str(root)}}), sort_keys=False))
    assert main(["train", str(recipe), "--out", str(place / "out"), "--no-progress"]) == 0
    return place / "out"


@pytest.fixture(scope="module")
def models(run: Path) -> Path:
    """The same net as every kind of file."""
    place, net, batch = run.parent / "models", Reddish().eval(), torch.zeros(2, 3, SIDE, SIDE)
    place.mkdir()
    free = {"images": {0: torch.export.Dim("n", min=1, max=512)}}
    torch.export.save(torch.export.export(net, (batch,), dynamic_shapes=free), place / "net.pt2")
    torch.export.save(torch.export.export(net, (batch,)), place / "pairs.pt2")
    torch.jit.trace(net, batch).save(str(place / "net.pt"))
    torch.save(net, place / "pickle.pt")
    keys, images = everything(run)
    with torch.inference_mode():
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        floats = (torch.from_numpy(images).float() / 255 - mean) / std
        said = net(floats.permute(0, 3, 1, 2)).softmax(1).numpy()
    pd.DataFrame({"key": keys, "disc": said[:, 0], "square": said[:, 1]}).to_csv(place / "net.csv", index=False)
    return place


def everything(run: Path) -> tuple[list[str], np.ndarray]:
    from cfaug.stages.verification import open_finished

    _, _, inputs = open_finished(run)
    reader = ShardReader(run / "shards")
    keys = [inputs.train.key(i) for i in range(len(inputs.train))] + [
        reader.record(i)["key"] for i in range(len(reader))
    ]
    images = [inputs.train.image(i) for i in range(len(inputs.train))] + [reader.image(i) for i in range(len(reader))]
    return keys, np.stack(images)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "effects.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["net.pt2", "pairs.pt2", "net.pt", "net.csv"])
def test_every_kind_of_file_tells_the_same(
    run: Path, models: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "audit", run, "--model", models / name, "--no-progress")
    assert answer.code == 0, answer.err
    assert "colour: uses it" in answer.out
    assert "ground: no effect beyond the floor" in answer.out
    own = [row for row in rows(run) if row["model"] == name]
    assert {row["group"] for row in own} >= {"all"}
    effect = next(row for row in own if row["attribute"] == "colour" and row["group"] == "all")
    assert effect["floor"] == "own value"
    assert effect["unfair"] > 0.8
    reference = call(capsys, "audit", run, "--model", models / "net.pt2", "--no-progress", "--json")
    told = json.loads(reference.out)["effects"][0]
    assert told["change"] == pytest.approx(effect["change"], abs=1e-4)
    pairs = json.loads((run / "audit" / f"{name}.json").read_text())
    assert pairs[0]["attribute"] in ("ground", "colour")


def test_onnx_tells_the_same(run: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx", reason="writes the file")
    pytest.importorskip("onnxruntime", reason="reads it")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, (3, 2), [2.0, -2.0, 0.0, 0.0, -2.0, 2.0])
    shape = ["n", 3, SIDE, SIDE]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])], [weight],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), models / "net.onnx")
    answer = call(capsys, "audit", run, "--model", models / "net.onnx", "--no-progress")
    assert answer.code == 0, answer.err
    assert "colour: uses it" in answer.out


def test_weights_of_a_named_net_and_the_order_of_its_classes(
    run: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=2)
    save_file(net.state_dict(), models / "resnet.safetensors")
    common = [
        "audit",
        run,
        "--model",
        models / "resnet.safetensors",
        "--architecture",
        "resnet18",
        "--no-progress",
        "--json",
    ]
    answer = call(capsys, *common)
    assert answer.code == 0, answer.err
    turned = call(capsys, *common, "--classes", "square,disc")
    assert turned.code == 0, turned.err
    first, second = (json.loads(one.out)["effects"][0] for one in (answer, turned))
    assert first["signed"][0] == pytest.approx(-second["signed"][0], abs=1e-5)


def test_a_run_keeps_its_classifiers_and_audits_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "audit", run, "--no-progress")
    assert answer.code == 0, answer.err
    assert {path.name for path in (run / "classifiers").iterdir()} == {"erm-0.safetensors", "cfaug-0.safetensors"}
    assert "erm-0 against cfaug-0" in answer.out or "cfaug-0 against" in answer.out or "erm-0 against" in answer.out
    assert {"erm-0", "cfaug-0"} <= {row["model"] for row in rows(run)}


def test_metrics_by_group_of_the_test_split(run: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "audit", run, "--model", models / "net.pt2", "--no-progress")
    assert "gaps between groups of colour:" in answer.out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = {row["group"]: row for row in rows if row["model"] == "net.pt2" and row["attribute"] == "colour"}
    assert set(own) == {"all", "colour=red", "colour=blue", "gap"}
    assert own["gap"]["equalised_odds"] is not None
    assert 0 <= own["all"]["ece"][1] <= own["all"]["ece"][0] <= own["all"]["ece"][2] <= 1


def test_two_models_are_compared(run: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "audit", run, "--model", models / "net.pt2", "--against", models / "net.csv", "--no-progress")
    assert answer.code == 0, answer.err
    assert "net.csv against net.pt2" in answer.out
    assert "colour: +0.0 (+0.0 to +0.0)" in answer.out.replace("-0.0", "+0.0")


def test_the_report_shows_the_audit(run: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "audit", run, "--model", models / "net.pt2", "--no-progress")
    answer = call(capsys, "report", run.parent / "recipe.yaml", "--out", run)
    assert answer.code == 0, answer.err
    page = (run / "report.html").read_text()
    assert "What the classifiers use" in page
    assert "net.pt2" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "none.pt2"], "none.pt2, which does not exist"),
        (["--model", "pickle.pt"], "pickle.pt is a pickle, which may run code and is not read; export it as .pt2"),
        (
            ["--model", "net.pt2", "--classes", "disc,triangle"],
            "expected the values of the target, disc, square, each once",
        ),
        (["--model", "net.pt2", "--normalization", "imagnet"], "did you mean imagenet"),
        (["--model", "three.pt"], "expected answers (64, 2), one for each class of the target, got (64, 3)"),
        (["--model", "large.pt2"], "expected a net for the run's images, 24x24, got one for 32x32"),
        (["--model", "weights.safetensors"], "has weights alone: expected --architecture"),
        (
            ["--model", "weights.safetensors", "--architecture", "resnet18"],
            "expected 2 classes, the values of the target, got a net of 5",
        ),
        (["--model", "short.csv"], "expected a row for every image that is asked about, got none for"),
        (["--model", "odd.csv"], "expected the columns key, disc, square"),
        (["--against", "net.pt2"], "expected --model as well"),
        (["--model", "net.pt2", "--images", "1"], "expected how many sources"),
    ],
)
def test_a_model_that_cannot_be_asked_is_one_line(
    run: Path,
    models: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    if "three.pt" in options:
        torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3)), torch.zeros(2, 3, SIDE, SIDE)).save(
            "three.pt"
        )
    if "large.pt2" in options:
        torch.export.save(torch.export.export(Reddish(), (torch.zeros(2, 3, 32, 32),)), "large.pt2")
    if "weights.safetensors" in options:
        save_file(torchvision.models.resnet18(num_classes=5).state_dict(), "weights.safetensors")
    if "short.csv" in options:
        pd.read_csv("net.csv").iloc[:70].to_csv("short.csv", index=False)
    if "odd.csv" in options:
        pd.read_csv("net.csv").rename(columns={"disc": "round"}).to_csv("odd.csv", index=False)
    answer = call(capsys, "audit", run, *options, "--no-progress")
    assert answer.code in (1, 2)
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_a_plan_draws_more_where_the_model_flips(
    run: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The net flips when the colour is that of the other class, so those are drawn more often; the ground is drawn evenly."""
    call(capsys, "audit", run, "--model", models / "net.pt2", "--no-progress")
    content = yaml.safe_load((run.parent / "recipe.yaml").read_text())
    content["plan"] |= {"strategy": "where_it_fails", "audit": str(run), "audited": "net.pt2"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    answer = call(capsys, "plan", tmp_path / "r.yaml", "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    from cfaug.offline import Plan

    table = pd.DataFrame(
        [{"key": row.source_key, **row.do.assignments} for row in Plan.load(tmp_path / "out" / "plan")]
    )
    shape = pd.read_csv(run.parent / "data" / "metadata.csv").set_index("file_name")["shape"]
    table["shape"] = shape.loc[table["key"]].to_numpy()
    colours = pd.crosstab(table["shape"], table["colour"], normalize="index")
    grounds = pd.crosstab(table["shape"], table["ground"], normalize="index")
    assert colours.loc["disc", "blue"] > 0.6
    assert colours.loc["square", "red"] > 0.6
    assert (colours > 0).all().all()
    assert ((grounds - 0.5).abs() < 0.2).all().all()
    content["plan"] |= {"audited": "other.pt2"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    refused = call(capsys, "doctor", tmp_path / "r.yaml")
    assert refused.code == 2
    assert "plan.audited: expected one of the audited models" in refused.err
    content["plan"] |= {"audit": str(tmp_path)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    assert "run `cfaug audit DIR` and name DIR" in call(capsys, "doctor", tmp_path / "r.yaml").err
