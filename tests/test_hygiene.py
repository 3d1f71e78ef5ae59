"""The walls of the house: imports point to a lower floor, no files import in a circle, and importing cfaug is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

REPO = Path(__file__).resolve().parents[1]
FLOORS = {
    "errors": 0,
    "autocast": 0,
    "lazy": 0,
    "data": 0,
    "config": 0,
    "decoder_config": 0,
    "editor_config": 0,
    "train_config": 0,
    "recipe_file": 0,
    "shipped_recipes": 0,
    "causal": 1,
    "decode": 2,
    "offline": 2,
    "judge": 2,
    "learn": 3,
    "train": 3,
    "stages": 4,
    "completion": 0,
    "command_line": 4,
    "cli": 5,
    "__main__": 6,
}
BESIDE = {("train", "learn")}
"""Rooms of one floor of which the first may import the second."""
# of generation, the training side knows only the shard reader
ONLY = {
    ("learn", "offline"): "cfaug.offline.read",
    ("train", "offline"): "cfaug.offline.read",
    ("learn", "decode"): "",
    ("train", "decode"): "",
    ("judge", "decode"): "",
}


def imported(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, wherever in it, TYPE_CHECKING included."""
    inside = ["cfaug", *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = inside[: len(inside) - node.level] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            # "from cfaug import data" names the module in the alias, "from cfaug.data import Schema" in the base
            yield from ((node.lineno, f"{base}.{a.name}") for a in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def wrong_arrows(package: Path) -> list[str]:
    """Every import that points up, or sideways to another room of the same floor (floor 0 is one floor of friends)."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        where = f"{path.relative_to(package)}"
        if room in ("__init__", "__main__"):
            continue  # the lazy public surface names every room
        if room not in FLOORS:
            found.append(f"{where}: {room} is on no floor")
            continue
        for line, module in imported(path, package):
            parts = module.split(".")
            if parts[0] == "diffusers" and room != "decode":
                found.append(f"{where}:{line}: only decode imports diffusers")
            if parts[0] != "cfaug" or len(parts) < 2 or parts[1] == room:
                continue
            other = parts[1]
            if other not in FLOORS:
                if other != "__version__":
                    found.append(f"{where}:{line}: {module} goes through the public surface, name the room")
                continue
            same = FLOORS[other] == FLOORS[room]
            if FLOORS[other] > FLOORS[room] or (same and FLOORS[room] > 0 and (room, other) not in BESIDE):
                found.append(f"{where}:{line}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})")
            allowed = ONLY.get((room, other))
            if allowed is not None and not (allowed and f"{module}.".startswith(f"{allowed}.")):
                found.append(f"{where}:{line}: {room} may import {allowed or 'nothing'} of {other}, not {module}")
    return found


def test_imports_only_point_to_a_lower_floor() -> None:
    assert wrong_arrows(REPO / "cfaug") == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/x.py", "from cfaug.causal import SCM"),
        ("data/x.py", "from cfaug import causal"),
        ("data/x.py", "from ..causal.graph import CausalGraph"),
        ("data/x.py", "def f():\n    import cfaug.cli"),
        ("data/x.py", "from cfaug import SCM"),
        ("causal/x.py", "import importlib\nimportlib.import_module('cfaug.offline')"),
        ("judge/x.py", "from cfaug.offline.read import ShardReader"),
        ("offline/deep/x.py", "from cfaug.decode import model"),
        ("learn/x.py", "from cfaug.offline import ShardReader"),
        ("learn/x.py", "from cfaug.offline.read_more import f"),
        ("learn/x.py", "from cfaug.decode.model import CounterfactualModel"),
        ("learn/x.py", "def f():\n    import diffusers"),
        ("learn/x.py", "from cfaug.train import METHODS"),
        ("stages.py", "from cfaug.cli import main"),
        ("attic/x.py", ""),
    ],
)
def test_a_planted_arrow_is_found(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / "cfaug" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert len(wrong_arrows(tmp_path / "cfaug")) == 1


def test_a_rightful_arrow_is_not(tmp_path: Path) -> None:
    for file, text in {
        "learn/x.py": "from cfaug.offline.read import ShardReader\nfrom cfaug.judge import accuracy\nimport torch",
        "causal/x.py": "from cfaug.data.schema import Schema\nfrom cfaug.errors import DataError\nfrom . import y",
        "decode/x.py": "def f():\n    import diffusers",
        "cli.py": "from cfaug import stages\nfrom cfaug import __version__",
        "train/x.py": "from cfaug.learn.dataset import CounterfactualDataset",
    }.items():
        path = tmp_path / "cfaug" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert wrong_arrows(tmp_path / "cfaug") == []


def circles(package: Path) -> list[list[str]]:
    """Files that import one another in a circle: in functions, under TYPE_CHECKING and by way of a package's ``__init__`` too."""
    files = {
        ".".join(["cfaug", *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph = nx.DiGraph()
    for name, path in files.items():
        for _, module in imported(path, package):
            # "cfaug.data.schema.Schema" is a name in the file cfaug.data.schema, "cfaug.data.Schema" one in cfaug/data/__init__
            while module and module not in files:
                module = module.rpartition(".")[0]
            if module and module != "cfaug":  # the lazy public surface names every room
                graph.add_edge(name, module)
    found = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    return sorted(found + [[name] for name in nx.nodes_with_selfloops(graph)])


def test_no_files_import_in_a_circle() -> None:
    assert circles(REPO / "cfaug") == []


@pytest.mark.parametrize(
    ("files", "members"),
    [
        ({"data/a.py": "from cfaug.data import b", "data/b.py": "from cfaug.data.a import x"}, 2),
        ({"data/a.py": "from .b import y", "data/b.py": "def f():\n    from .a import x"}, 2),
        (
            {
                "data/a.py": "from cfaug.data.b import y",
                "data/b.py": "if TYPE_CHECKING:\n    from cfaug.data.a import x",
            },
            2,
        ),
        ({"data/__init__.py": "from cfaug.data.a import x", "data/a.py": "from cfaug.data import y"}, 2),
        ({"a.py": "import cfaug.b", "b.py": "import cfaug.c", "c.py": "from cfaug.a import x"}, 3),
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, files: dict[str, str], members: int) -> None:
    for file, text in {**files, "data/d.py": "from cfaug.data.a import x"}.items():
        path = tmp_path / "cfaug" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [len(circle) for circle in circles(tmp_path / "cfaug")] == [members]


def loaded(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    program = f"{code}\nimport sys\nprint('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_cfaug_is_light() -> None:
    assert not loaded("import cfaug") & {"torch", "diffusers", "numpy", "pandas", "sklearn", "zuko", "webdataset"}
    assert not loaded("from cfaug import Schema, CausalGraph, SCM, do, Grouper") & {"torch", "diffusers", "sklearn"}


def test_the_training_side_needs_no_diffusers() -> None:
    names = "CounterfactualDataset, RandomCounterfactual"
    assert not loaded(f"from cfaug import {names}") & {"diffusers", "zuko", "sklearn"}


def test_the_light_import_check_can_fail() -> None:
    assert "numpy" in loaded("import cfaug, numpy")
