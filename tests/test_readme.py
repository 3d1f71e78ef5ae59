"""The README's code runs as it stands, and the recipes reach whoever installs a wheel."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.python_files import module
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def _birds(folder: Path) -> None:
    """A folder as the README describes it: 36 tiny images, background correlated with species."""
    rng = np.random.default_rng(0)
    rows = []
    folder.mkdir()
    for i in range(36):
        species, place = ("landbird", "waterbird")[i % 2], ("land", "water")[(i + (i % 5 == 0)) % 2]
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[..., 2 if place == "water" else 1] += 120
        pixels[4:12, 6 : 8 + 4 * (i % 2)] = 200
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "split": "train", "species": species, "background": place})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


def test_the_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    code = blocks[0]
    assert len(code.splitlines()) <= 30
    # only the training budget is cut: the default is a minute at the least
    cut = code.replace(
        'parents=graph.parents("image"))', 'parents=graph.parents("image"), max_steps=5, channels=[16, 16])'
    )
    assert cut != code
    _birds(tmp_path / "birds")
    one = cut.replace("workers=2", "workers=1")  # a worker imports diffusers and transformers: five seconds
    assert one != cut
    (tmp_path / "story.py").write_text(one, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    told = runpy.run_path(str(tmp_path / "story.py"), run_name="__main__")  # its worker imports it: the guard is needed
    assert next(iter(told["loader"]))[0].shape == (36, 3, 16, 16)


def test_the_table_is_that_of_the_committed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = module(ROOT / "benchmarks" / "readme_table.py").table()
    assert "\n".join(table) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_names_only_commands_that_exist() -> None:
    from cfaug.command_line import STAGES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`?cfaug (demo|[a-z-]+)(?= |`)", text))
    known = {*STAGES, "demo", "recipes", "doctor", "verify", "inspect", "compare"}
    assert {"demo", "run", "recipes"} <= named
    assert {word for word in named if word in ("verify", "inspect", "compare", "discover")} <= known


def test_a_wheel_carries_the_recipes_the_template_and_the_types(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building a wheel without network needs setuptools in the environment")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-2000:]
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    shipped = {f"cfaug/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert shipped
    assert shipped <= names
    assert {
        "cfaug/py.typed",
        "cfaug/judge/report.html",
        "cfaug/judge/report.css",
        "cfaug/judge/report.js",
        "cfaug/stages/run.py",
        "cfaug/data/sources/digits.py",
    } <= names
    assert not {name for name in names if name.startswith(("recipes/", "tests/", "shards/"))}


def test_every_package_on_disk_is_packaged() -> None:
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "cfaug").rglob("*.py")}
    assert found | {"cfaug.recipes"} == listed


def test_recipes_are_found_in_this_installation() -> None:
    from cfaug.shipped_recipes import shipped_recipes

    assert {"demo", "double_colored_mnist", "folder"} <= set(shipped_recipes())
