"""``cfaug completion``: the script in a real bash, asked as the shell asks it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
from helpers.tiny_run import call

from cfaug.command_line import STAGES
from cfaug.config import option_names

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


def completed(script: str, *words: str) -> list[str]:
    """What bash proposes for the last of some words."""
    line = " ".join(f"'{word}'" for word in words)
    asked = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _cfaug; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@bash
def test_bash_completes_commands_options_and_settings(capsys: Any) -> None:
    script = call(capsys, "completion", "bash").out
    assert set(completed(script, "cfaug", "")) >= {*STAGES, "demo", "doctor", "completion", "recipes"}
    assert completed(script, "cfaug", "insp") == ["inspect"]
    assert completed(script, "cfaug", "demo", "--ph") == ["--photos"]
    assert completed(script, "cfaug", "run", "r.yaml", "--train.ep") == ["--train.epochs="]
    assert completed(script, "cfaug", "recipes", "") == ["--help", "--json", "ls", "cp"]
    assert completed(script, "cfaug", "verify", "x", "--train") == []
    assert completed(script, "cfaug", "nothing", "") == []
    every = set(completed(script, "cfaug", "run", "r.yaml", "--"))
    assert {f"--{name}=" for name in option_names()} <= every


@bash
def test_both_scripts_can_be_read_and_bash_registers_it(capsys: Any) -> None:
    script = call(capsys, "completion", "bash").out
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\ncomplete -p cfaug"], capture_output=True, text=True, check=True
    )
    assert "-F _cfaug cfaug" in done.stdout
    first, _, rest = call(capsys, "completion", "zsh").out.partition("\n")
    assert "bashcompinit" in first
    assert rest == script


def test_another_shell_is_refused(capsys: Any) -> None:
    assert "'fish'" in call(capsys, "completion", "fish").complaint
