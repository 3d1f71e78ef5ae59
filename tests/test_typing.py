"""What a user's type checker sees of cfaug: ``mypy --strict`` with no configuration of ours, following the installed package.

``tests/helpers/typed_example.py`` is the user's program. The package is found as an installed one is (a directory on the path, with its
py.typed), from another working directory. With a user's configuration that does not follow diffusers, transformers and ray,
which no public type needs: 15 s on one thread where the cache (pytest's) is empty, 2 s after that. With none at all 63 s, of
which the annotations of those three are 48: slow.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
USER = Path(__file__).parent / "helpers" / "typed_example.py"
ROOMS = (
    "cfaug", "cfaug.data", "cfaug.causal", "cfaug.decode", "cfaug.offline", "cfaug.learn", "cfaug.train.objectives",
    "cfaug.judge",
)  # fmt: skip


def public(room: str) -> list[str]:
    return list(importlib.import_module(room).__all__)


THEIRS = "[mypy]\n[mypy-diffusers.*,transformers.*,ray.*]\nfollow_imports = skip\n"


def mypy(place: Path, cache: Path, configuration: str, *files: str, package: Path = REPO / "cfaug") -> str:
    """What mypy says in ``place``, as for a user who has ``package`` installed."""
    installed = place / "installed"
    installed.mkdir(exist_ok=True)
    if not (installed / "cfaug").exists():
        (installed / "cfaug").symlink_to(package)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("MYPYPATH", None)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), *files]
    if configuration:
        (place / "theirs.ini").write_text(configuration)
    command.append(f"--config-file={'theirs.ini' if configuration else ''}")
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("mypy-of-a-user"))


def typed_names(source: str) -> list[str]:
    """The names that a package's ``__init__`` imports under ``if TYPE_CHECKING``."""
    blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return sorted(alias.asname or alias.name for node in imports for alias in node.names)


@pytest.mark.parametrize("room", ["cfaug", "cfaug.data", "cfaug.learn", "cfaug.train"])
def test_a_lazy_package_has_the_names_of_its_types(room: str) -> None:
    package = importlib.import_module(room)
    assert package.__file__ is not None
    assert typed_names(Path(package.__file__).read_text(encoding="utf-8")) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__class__
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("configuration", [THEIRS, pytest.param("", marks=pytest.mark.slow)], ids=["theirs", "none"])
def test_no_public_name_is_any_for_a_strict_user(tmp_path: Path, cache: Path, configuration: str) -> None:
    names = [f"{room}.{name}" for room in ROOMS for name in public(room)]
    revealed = [*(f"import {room}" for room in ROOMS), *(f"reveal_type({name})" for name in names)]
    wrong = ["from cfaug.judge import gap_closed", "share: str = gap_closed(1.0, 0.5, 2.0)"]
    (tmp_path / "typed_example.py").write_bytes(USER.read_bytes())
    (tmp_path / "revealed.py").write_text("\n".join(revealed) + "\n")
    (tmp_path / "wrong.py").write_text("\n".join(wrong) + "\n")
    said = mypy(
        tmp_path,
        cache / ("theirs" if configuration else "none"),
        configuration,
        "typed_example.py",
        "revealed.py",
        "wrong.py",
    )
    errors = [line for line in said.splitlines() if ": note: " not in line and not line.startswith("Found ")]
    # that the wrong line is found, and nothing else, proves that the package's annotations were read
    assert len(errors) == 1, "\n".join(errors)
    assert errors[0].startswith("wrong.py:2: error: Incompatible types in assignment")
    types = dict(re.findall(r'revealed\.py:(\d+): note: Revealed type is "(.*)"', said))
    seen = {name: types[str(number)] for number, name in enumerate(names, len(ROOMS) + 1)}
    untyped = {name for name, kind in seen.items() if kind == "Any" or kind.endswith("-> Any")}
    assert untyped == set()
