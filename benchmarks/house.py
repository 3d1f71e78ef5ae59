"""The size of the house: lines per room, files to open for one line of the README, circles of imports.

python benchmarks/house.py [COMMIT]        # beside the working tree, the same figures of COMMIT
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
DATASET = ("learn/dataset.py", "learn/mixing.py")  # where CounterfactualDataset is, and was


def lines(folder: Path) -> dict[str, int]:
    """Lines of Python per room (a folder or file directly below `folder`)."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*.py")):
        first = path.relative_to(folder).parts[0]
        room = first if (folder / first).is_dir() else "(top)"
        found[room] = found.get(room, 0) + len(path.read_text().splitlines())
    return found


def arrows(package: Path) -> dict[str, set[str]]:
    """Which module of the package imports which, wherever in the file, TYPE_CHECKING included; an `__init__` is its package."""
    names = {
        ".".join(p.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for p in package.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [name if name in names else node.module for name in inner]
            else:
                continue
            found[module] |= {name for name in wanted if name in names and name != module}
    return found


def reachable(start: str, graph: dict[str, set[str]], inside: str) -> set[str]:
    """The modules below `inside` that `start` needs, itself included."""
    seen, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in seen and module.startswith(inside):
            seen.add(module)
            todo += graph[module]
    return seen


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import one another, packages' lazy `__init__` tables left out."""
    import networkx as nx

    whole = nx.DiGraph([(a, b) for a, others in graph.items() for b in others])
    return [group for group in nx.strongly_connected_components(whole) if len(group) > 1]


def figures(root: Path) -> dict[str, dict[str, int]]:
    """All figures of one tree."""
    graph = arrows(root / "cfaug")
    start = next(name for name in DATASET if (root / "cfaug" / name).exists())
    module = "cfaug." + start.removesuffix(".py").replace("/", ".")
    return {
        "source": lines(root / "cfaug"),
        "tests": lines(root / "tests"),
        "files": {
            "to open for CounterfactualDataset, in learn": len(reachable(module, graph, "cfaug.learn.")),
            "circles": len(circles(graph)),
        },
    }


def main() -> None:
    """Print a Markdown table per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?")
    commit = parser.parse_args().commit
    now = figures(REPO)
    before: dict[str, dict[str, int]] = {}
    if commit:
        archive = subprocess.run(["git", "archive", commit], cwd=REPO, capture_output=True, check=True).stdout
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
            before = figures(Path(folder))
    for kind, counts in now.items():
        old = before.get(kind, {})
        sys.stdout.write(f"\n| {kind} | {commit or ''} | now |\n|---|---|---|\n")
        for name in sorted({*counts, *old}):
            sys.stdout.write(f"| {name} | {old.get(name, 0)} | {counts.get(name, 0)} |\n")
        if kind != "files":
            sys.stdout.write(f"| all | {sum(old.values())} | {sum(counts.values())} |\n")


if __name__ == "__main__":
    main()
