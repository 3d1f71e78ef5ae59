"""The documentation keeps its promises: its code runs, its commands exist, its settings and names are all of those that there are."""

from __future__ import annotations

import argparse
import ast
import configparser
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.python_files import module

from cfaug.command_line import STAGES, make_parser, overrides_of
from cfaug.config import REMOVED, Recipe, option_names
from cfaug.errors import UsageError
from cfaug.recipe_file import set_option

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "recipes/loops/README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^(<!-- run -->\n)?```python\n(.*?)^```\n(?:\n((?: {4}[^\n]*\n)+))?", re.MULTILINE | re.DOTALL)
RUN = [page for page in PAGES if "<!-- run -->" in page.read_text(encoding="utf-8")]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def hooks() -> Any:
    return module(DOCS / "hooks.py")


# -- code ------------------------------------------------------------------------------------------------------


def unresolved(code: str) -> list[str]:
    """What a block imports from cfaug, or takes from a module of it, that is not there."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cfaug":
            found = importlib.import_module(node.module)
            missing += [f"{node.module}.{one.name}" for one in node.names if not hasattr(found, one.name)]
    return missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_compile_and_their_imports_resolve(page: Path) -> None:
    for _, code, _ in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert unresolved(code) == []


def test_a_name_that_is_gone_is_noticed() -> None:
    assert unresolved("from cfaug.learn import MixingCollate, Mixer") == ["cfaug.learn.Mixer"]
    with pytest.raises(SyntaxError):
        unresolved("train = = 1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the pages call DATA and OUT: an ImageFolder of coloured digits and shards of their recolourings."""
    root = tmp_path_factory.mktemp("docs")
    made = module(ROOT / "recipes/loops/make_data.py")
    made.write_images(root / "DATA", 0.95, 0)
    made.write_counterfactuals(root / "DATA", 0)
    (root / "OUT").mkdir()
    (root / "DATA" / "counterfactuals" / "shards").rename(root / "OUT" / "shards")
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.mark.parametrize("page", RUN, ids=named)
def test_marked_blocks_run_and_print_what_the_page_says(page: Path, place: Path, tmp_path: Path) -> None:
    """All marked blocks of a page are one program; an indented text behind a block is part of what it prints."""
    told: dict[str, Any] = {}
    for number, (marked, code, says) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
        if not marked:
            continue
        script = tmp_path / f"block{number}.py"
        script.write_text(code, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            told = runpy.run_path(str(script), init_globals=told)
        for line in says.splitlines():
            assert line[4:] in printed.getvalue(), (
                f"{page.name} says {line.strip()!r}, but its code prints\n{printed.getvalue()}"
            )


def test_pages_that_run_are_found() -> None:
    assert len(RUN) >= 5


# -- commands --------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `cfaug ...` in code: blocks by the line, and spans in running text."""
    lines = re.findall(
        r"^ {4,}(\S.*)$", re.sub(r"^```python\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    spans = re.findall(r"`((?:cfaug|torchrun|srun) [^`\n]+)`", text)
    for line in [*lines, *spans]:
        for part in re.split(r"&&|;|\|(?=\s)", re.sub(r"(^|\s)#.*$", "", line)):
            found = re.search(r"(?:^|\s|-m )cfaug (?=[a-z])(.*)$", part)
            if found and re.match(r"\s*(?:cfaug|torchrun|srun|CUDA|OMP)", part):
                # [RECIPE.yaml] may be left out, RUN... may be many, (...) is a remark
                yield shlex.split(re.sub(r"\s\(.*\)$|>.*$", "", re.sub(r"[\[\]]|\.\.\.(?=\s|$)", "", found[1])).strip())


def refusal(arguments: list[str]) -> str | None:
    """Why the parser, or the recipe's settings, refuse a command line; None where they take it.

    Running text may leave the place out, and the value behind the last option: `cfaug verify --regenerate`.
    """
    if arguments[0] not in _subcommands():
        return f"there is no command {arguments[0]}"
    tried = [_refusal([*arguments, *more]) for more in ([], ["DIR"], ["1"], ["1", "DIR"])]
    left_out = tried[0] is not None and re.search("required|expected one argument", tried[0])
    return tried[0] if not left_out or None not in tried else None


def _refusal(arguments: list[str]) -> str | None:
    try:
        parsed, rest = make_parser().parse_known_args(arguments)
        if rest and parsed.command not in (*STAGES, "demo", "doctor", "suspect", "import"):
            return f"{parsed.command} does not take {rest[0]}"
        for override in overrides_of(rest):
            if override != "--a.b=value":
                set_option({}, Recipe, override.lstrip("-"), REMOVED)
    except UsageError as error:
        return str(error)
    return None


def _subcommands() -> set[str]:
    found = next(one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return set(found.choices)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_of_the_pages_exist(page: Path) -> None:
    for arguments in commands(page.read_text(encoding="utf-8")):
        assert refusal(arguments) is None, f"cfaug {' '.join(arguments)}"


def test_commands_are_found_and_a_wrong_one_is_noticed() -> None:
    text = "    cfaug run a.yaml --train.epoch=5   # x\nand `cfaug audit OUT --modell net.onnx`, and\n    torchrun -m cfaug fit a.yaml --out OUT && cfaug vanish\n"
    found = list(commands(text))
    assert [one[0] for one in found] == ["run", "fit", "vanish", "audit"]
    assert [refusal(one) is None for one in found] == [False, True, False, False]
    assert refusal(["verify", "--regenerate"]) is None
    assert refusal(["verify", "--regenerates"]) is not None
    assert sum(len(list(commands(page.read_text(encoding="utf-8")))) for page in PAGES) > 80


def test_the_table_of_commands_is_whole() -> None:
    text = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    assert {name for name in _subcommands() if f"`cfaug {name}" not in text} == set()


# -- settings and API --------------------------------------------------------------------------------------------


def test_the_settings_page_has_every_option_with_its_default_and_a_reason() -> None:
    groups = module(DOCS / "settings.py").groups()
    found = {one.name: one for group in groups for one in group.settings}
    assert sorted(found) == sorted(option_names())
    assert [name for name, one in found.items() if not one.reason.strip()] == []
    recipe = Recipe().to_dict()
    for name, one in found.items():
        value: Any = recipe
        for part in name.split("."):
            value = value[part]
        assert yaml.safe_load(one.default) == value or float(one.default) == value, name


def test_the_settings_page_is_that_of_the_configuration() -> None:
    found = module(DOCS / "settings.py")
    assert found.PAGE.read_text(encoding="utf-8") == found.written(), "run `python docs/settings.py`"


def test_the_api_page_has_what_the_rooms_export(hooks: Any) -> None:
    page = (DOCS / "reference/api.md").read_text(encoding="utf-8")
    for room in hooks.ROOMS:
        assert f"<!-- api {room} -->" in page
        assert set(hooks.exported(room)) >= set(importlib.import_module(room).__all__) - {"__version__"}, room
        for name, where in hooks.exported(room).items():
            assert hasattr(importlib.import_module(where), name)


def test_messages_that_are_explained_exist() -> None:
    """The first column of the page of messages, each in some source file, across the seams of its strings."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "cfaug").rglob("*.py"))
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", sources)
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "reference/messages.md").read_text(encoding="utf-8"), re.MULTILINE)
    phrases = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    assert len(phrases) > 10
    assert [phrase for phrase in phrases if phrase not in joined] == []


# -- the site ----------------------------------------------------------------------------------------------------


def test_first_uses_are_linked_to_the_glossary(hooks: Any) -> None:
    text = "# The gate\n\n`gate` is code. The gate looks, the gate again.\n\n    a gate in code\n\nA [gate](x.md) and shards.\n"
    assert hooks.linked(text, "glossary.md").count("glossary.md#gate") == 1
    assert "The [gate](glossary.md#gate) looks, the gate again" in hooks.linked(text, "glossary.md")
    by_hand = "[shards](glossary.md#shard) here, shards there\n"
    assert hooks.linked(by_hand, "glossary.md") == by_hand
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    assert set(re.findall(r'<a id="([\w-]+)">', glossary)) == set(hooks.WORDS)


def test_links_out_of_docs_become_links_of_the_site(hooks: Any) -> None:
    has = {"benchmarks/gate.md", "recipes/loops/README.md", "gate.md"}.__contains__
    assert hooks.relinked("[a](../benchmarks/gate.md#cost)", "gate.md", has) == "[a](benchmarks/gate.md#cost)"
    assert hooks.relinked("[a](docs/gate.md)", "README.md", has) == "[a](gate.md)"
    assert hooks.relinked("[a](../recipes/loops)", "training.md", has) == "[a](recipes/loops/README.md)"
    assert hooks.relinked("[`a`](../cfaug/cli.py)", "gate.md", has) == "`a`"


def test_tox_and_setup_ask_for_the_same_packages() -> None:
    setup, tox = configparser.ConfigParser(), configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tox.read(ROOT / "tox.ini")
    assert setup["options.extras_require"]["docs"].split() == tox["testenv:docs"]["deps"].split()


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [
        named(page) for page in sorted(DOCS.rglob("*.md")) if f" {page.relative_to(DOCS).as_posix()}\n" not in text
    ] == []


def _mkdocs() -> str:
    found = os.environ.get("CFAUG_MKDOCS") or shutil.which("mkdocs")
    if not found:
        pytest.skip(
            "mkdocs is not installed here: `tox -e docs` builds the site, CFAUG_MKDOCS names a program that can"
        )
    return found


def _built(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [_mkdocs(), "build", "--strict", "--config-file", str(root / "mkdocs.yml"), "--site-dir", str(site)]
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    built = _built(ROOT, tmp_path / "site")
    assert built.returncode == 0, built.stderr[-3000:]
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 40
    for path, text in pages.items():
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), path
    settings = pages[tmp_path / "site/reference/settings.html"]
    assert [name for name in option_names() if f"<code>{name}</code>" not in settings] == []
    assert 'id="cfaug.causal.scm.SCM"' in pages[tmp_path / "site/reference/api.html"]


def test_a_dead_link_or_a_dead_anchor_ends_the_build(tmp_path: Path) -> None:
    _mkdocs()
    for name in ("docs/hooks.py", "docs/glossary.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: x\nhooks: [docs/hooks.py]\nplugins: []\nexclude_docs: '*.py'\nvalidation: {links: {anchors: warn}}\n"
    )
    (tmp_path / "docs" / "training.md").write_text("# Training\n")  # the glossary links to it
    page = tmp_path / "docs" / "page.md"
    for text, good in (("[a](glossary.md#gate)", True), ("[a](glossary.md#gait)", False), ("[a](gone.md)", False)):
        page.write_text(f"# A page\n\n{text}\n")
        assert (_built(tmp_path, tmp_path / "site").returncode == 0) is good, text
