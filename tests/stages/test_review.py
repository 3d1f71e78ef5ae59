"""``cfaug review``: the page driven by keys in a real browser, decisions that survive regeneration, a gate made of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.layered import write_folder
from helpers.tiny_run import call

from cfaug.cli import main
from cfaug.data.images import pixel_digest
from cfaug.offline import ShardReader

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONTENT: dict[str, Any] = {
    "name": "scenes",
    "attributes": {"target": "shape", "spurious": ["ground"]},
    "graph": "shape <-> ground; shape -> image; ground -> image",
    "decoder": {"kind": "layered", "layers": {"background": ["ground"]}},
    "plan": {"per_image": 4, "null_fraction": 0},
    "gate": {"enabled": False},
    "generate": {"workers": 0, "samples_per_shard": 100, "batch_size": 32},
    "train": {"methods": ["erm", "cfaug"], "null_p": 0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("review")
    content = {
        **CONTENT,
        "data": {"source": "folder", "root": str(write_folder(place / "data", train=60)), "masks": "mask"},
    }
    (place / "r.yaml").write_text(yaml.safe_dump(content))
    assert main(["generate", str(place / "r.yaml"), "--out", str(place / "out"), "--no-progress"]) == 0
    return place / "out"


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(r"const data = (.*);\n", page.read_text())
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def decisions(run: Path, path: Path, wrong: int) -> Path:
    """As the page would save them: the first ``wrong`` pairs are wrong, the next one shows the other class, the rest is right."""
    data = page_data(run / "review.html")
    said = []
    for k, pair in enumerate(data["pairs"]):
        decision = (
            {"decision": "n"}
            if k < wrong
            else {"decision": "relabel", "label": data["classes"][0]}
            if k == wrong
            else {"decision": "y"}
        )
        said.append({"key": pair["key"], "digest": pair["digest"], **decision})
    path.write_text(json.dumps({"format": 1, "run": data["name"], "data": data["data"], "decisions": said}))
    return path


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_two_hundred_pairs_by_keys_and_again_after_regeneration(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "review", run, "--no-progress")
    assert answer.code == 0, answer.err
    page, data = run / "review.html", page_data(run / "review.html")
    assert len(data["pairs"]) == 200
    keys = ["n", "u", *("y" if k % 3 else "n" for k in range(198)), "r", "2"]  # the first is undone; one is left open
    first = exported(page, tmp_path, keys)
    said = {one["key"]: one for one in first["decisions"]}
    assert len(said) == 199
    for k, pair in enumerate(data["pairs"][:198]):
        assert said[pair["key"]]["decision"] == ("y" if k % 3 else "n")
        assert said[pair["key"]]["digest"] == pair["digest"]
    assert said[data["pairs"][198]["key"]]["label"] == data["classes"][1]
    again = run.parent / "again"
    assert main(["generate", str(run.parent / "r.yaml"), "--out", str(again), "--no-progress"]) == 0
    call(capsys, "review", again, "--no-progress")
    shutil.copy(again / "review.html", page)  # the same place, the bytes of another generation
    assert exported(page, tmp_path, [])["decisions"] == first["decisions"]


def exported(page: Path, place: Path, keys: list[str]) -> dict[str, Any]:
    """What the page would save after some keys; the browser's profile stays in ``place``."""
    whole = page.read_text()
    pressed = "".join(f"document.dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}));" for key in keys)
    shown = page.with_name("driven.html")
    shown.write_text(whole.replace("</body>", f"<script>{pressed}</script></body>"))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={place / 'profile'}",
        "--virtual-time-budget=5000", "--dump-dom", shown.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="export" hidden="">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))  # type: ignore[no-any-return]


def test_agreement_and_a_gate_of_decisions(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "review", run, "--pairs", "60", "--no-progress")
    path = decisions(run, tmp_path / "decisions.json", 5)
    told = call(capsys, "review", run, "--decisions", path)
    assert told.code == 0, told.err
    assert (
        "60 pairs were reviewed, all of which the gate had kept: 54 right (90.0 %), 5 wrong, 1 of another class"
        in told.out
    )
    again = tmp_path / "again"
    made = call(capsys, "generate", run.parent / "r.yaml", "--out", again, "--no-progress", f"--gate.decisions={path}")
    assert made.code == 0, made.err
    wrong = {one["digest"] for one in json.loads(path.read_text())["decisions"] if one["decision"] != "y"}
    before, after = (
        {pixel_digest(reader.image(i)) for i in range(len(reader))}
        for reader in (ShardReader(run / "shards"), ShardReader(again / "shards"))
    )
    assert wrong <= before
    assert not wrong & after
    assert len(before & after) >= len(before) - len(wrong)


def test_decisions_about_other_images_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "review", run, "--pairs", "20", "--no-progress")
    path = decisions(run, tmp_path / "decisions.json", 2)
    content = json.loads(path.read_text())
    changed = {**content, "decisions": [{**content["decisions"][0], "digest": "0" * 64}]}
    for other, said in (
        (changed, "got 1 about other images"),
        ({**content, "data": "f" * 64}, "got those about others (ffffffffffff)"),
        ({"decisions": 3}, "expected the decisions.json of `cfaug review`"),
        ({**content, "decisions": []}, "got none; decide some pairs"),
        (
            {**content, "decisions": [{**content["decisions"][0], "decision": "perhaps"}]},
            "expected decisions of format 1",
        ),
    ):
        path.write_text(json.dumps(other))
        answer = call(capsys, "review", run, "--decisions", path)
        assert answer.code == 2
        assert said in answer.err
        assert len(answer.err.strip().splitlines()) == 1
    assert "expected how many pairs" in call(capsys, "review", run, "--pairs", "0").err


def test_the_most_doubtful_of_a_gated_run_come_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((run.parent / "r.yaml").read_text())
    content["gate"] = {"enabled": True, "least": 2}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    assert main(["generate", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out"), "--no-progress"]) == 0
    call(capsys, "review", tmp_path / "out", "--pairs", "40", "--no-progress")
    reasons = [pair["why"] for pair in page_data(tmp_path / "out" / "review.html")["pairs"]]
    assert all(reasons)
    assert len(set(reasons)) > 1
