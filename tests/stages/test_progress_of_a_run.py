"""What ``cfaug run`` says of its stages: which of how many, how long it took, and the minutes left where an earlier run told them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from helpers.tiny_run import call

from cfaug.cli import main

STAGES = ["diagnose", "plan", "fit", "generate", "train", "evaluate", "report", "verify"]


def test_a_run_counts_its_stages_and_foretells_the_rest(recipe: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "out"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    said = [re.fullmatch(r"stage (\d) of 8: (\w+) \.\.\.", line) for line in caplog.messages]
    assert [(found[1], found[2]) for found in said if found] == [(str(i + 1), name) for i, name in enumerate(STAGES)]
    assert [
        name for name in STAGES if any(re.fullmatch(rf"{name} done in [\d.]+ s", m) for m in caplog.messages)
    ] == STAGES

    run = json.loads((out / "run.json").read_text())
    assert set(run["seconds"]) == {"fit", "generate", "train", "evaluate"}
    run["seconds"] = {"fit": 60.0, "generate": 120.0, "train": 240.0, "evaluate": 60.0}
    (out / "run.json").write_text(json.dumps(run))
    caplog.clear()
    assert main(["run", str(recipe), "--out", str(out), "--overwrite"]) == 0
    told = dict(re.findall(r"stage \d of 8: (\w+), about (\d+) min left", "\n".join(caplog.messages)))
    assert told == {"diagnose": "8", "plan": "8", "fit": "8", "generate": "7", "train": "5", "evaluate": "1"}


def test_without_counterfactuals_there_are_three_stages(recipe: Path, tmp_path: Path, caplog: Any) -> None:
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--train.methods=[erm]"]) == 0
    assert re.findall(r"stage (\d of \d: \w+)", caplog.text) == ["1 of 3: diagnose", "2 of 3: train", "3 of 3: report"]


def test_without_progress_nothing_is_counted(recipe: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    assert call(capsys, "run", recipe, "--out", tmp_path / "out", "--train.methods=[erm]").code == 0
    assert "stage 1" not in caplog.text
    assert [line for line in caplog.messages if line.endswith((" ...", " s"))] == ["train ...", caplog.messages[-1]]
