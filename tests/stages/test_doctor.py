"""``cfaug doctor``: a verdict per line, the last of which is what ``cfaug run`` would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.tiny_run import call, contents, folder, folder_recipe

from cfaug import __version__


def verdicts(text: str) -> list[tuple[str, str]]:
    return [(line.split()[0], line[9:].split("  ")[0]) for line in text.splitlines()[:-1]]


def test_every_line_has_a_verdict_and_the_last_says_start(birds: Path, recipe: Path, capsys: Any) -> None:
    text = call(capsys, "doctor", recipe).out
    found = verdicts(text)
    assert {verdict for verdict, _ in found} <= {"ok", "warning"}
    assert {"versions", "disk", "recipe", "inputs", "plan", "SCM"} <= {what for _, what in found}
    assert text.splitlines()[-1].startswith(f"`cfaug run {recipe}` would start")
    assert "this installation can run" in call(capsys, "doctor").out


def test_json_has_verdicts_and_whether_a_run_starts(recipe: Path, capsys: Any) -> None:
    found = json.loads(call(capsys, "doctor", recipe, "--json").out)
    assert found["versions"]["cfaug"] == __version__
    assert (found["starts"], found["recipe"]) == (True, {"train": 36, "val": 12, "test": 12})
    assert {"verdict", "what", "found"} == set(found["verdicts"][0])


@pytest.mark.parametrize(
    ("change", "what", "words"),
    [
        ("--plan.attributes=[species]", "plan", "training keeps a source's label"),
        ("--graph=species -> image", "inputs", "'background' is not in the graph"),
        ("--train.epochs=0", "recipe", "train.epochs"),
    ],
)
def test_what_doctor_refuses_a_run_refuses(
    change: str, what: str, words: str, recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    answer = call(capsys, "doctor", recipe, change)
    assert [found for verdict, found in verdicts(answer.out) if verdict == "refused"] == [what]
    assert words in answer.out
    assert "would not start" in answer.out.splitlines()[-1]
    run = call(capsys, "run", recipe, change, "--out", tmp_path / "out")
    assert (run.code, answer.code) == (2, 2)
    assert words in run.complaint
    assert json.loads(call(capsys, "doctor", recipe, change, "--json").out)["starts"] is False


def test_without_the_card_everything_else_is_checked(recipe: Path, capsys: Any) -> None:
    """As on a cluster's login node."""
    answer = call(capsys, "doctor", recipe, "--decoder.device=cuda:77")
    found = verdicts(answer.out)
    assert [what for verdict, what in found if verdict == "refused"] == ["devices"]
    assert {"inputs", "plan", "SCM"} <= {what for verdict, what in found if verdict == "ok"}
    assert answer.code == 2


def test_devices_that_are_there_are_those_of_the_later_checks(
    recipe: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfaug.stages import doctor

    seen: list[str] = []
    opened = doctor.open_inputs

    def recorded(own: Any, *rest: Any) -> Any:
        seen.append(own.train.device)
        return opened(own, *rest)

    monkeypatch.setattr(doctor, "open_inputs", recorded)
    text = call(capsys, "doctor", recipe, "--train.device=meta").out  # torch has it everywhere
    assert seen == ["meta"]
    assert "cpu, meta" in text


def test_a_warning_is_a_line_and_does_not_refuse(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = folder(tmp_path / "birds")
    table = pd.read_csv(root / "metadata.csv")
    empty = (table.split == "val") & (table.species == "water") & (table.background == "land")
    table.loc[empty, "split"] = "test"
    table.to_csv(root / "metadata.csv", index=False)
    recipe = folder_recipe(tmp_path / "r.yaml", root)
    before = contents(tmp_path)
    answer = call(capsys, "doctor", recipe)
    assert (answer.code, answer.err) == (0, "")
    assert any(line.startswith("warning  inputs") and "groups" in line for line in answer.out.splitlines())
    assert "would start (1 warning)" in answer.out
    assert contents(tmp_path) == before
