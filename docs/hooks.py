"""Hooks of the site: pages that live elsewhere in the repository, their links, what is made from the code, links to the glossary.

A page keeps the links that are right in the repository (``../benchmarks/gate.md``). Here they become those of the site; a link to what the
site does not have becomes plain text, and a link to what nobody has is a warning, which ends a strict build.
"""

from __future__ import annotations

import ast
import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

LOG = logging.getLogger("mkdocs.hooks.cfaug")
ELSEWHERE = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff", "shards/README.md", "benchmarks/*.md", "benchmarks/*.py",
    "benchmarks/results/*", "recipes/*.yaml", "recipes/loops/README.md", "recipes/loops/*.py", "recipes/loops/*/*",
)  # fmt: skip
"""What the site takes from outside of docs/: at the same place as in the repository."""

ROOMS = ("cfaug", "cfaug.data", "cfaug.causal", "cfaug.decode", "cfaug.offline", "cfaug.learn", "cfaug.train", "cfaug.train.objectives",
         "cfaug.judge", "cfaug.stages")  # fmt: skip

WORDS = {
    "spurious-attribute": r"spurious attributes?",
    "attribute": r"attributes?",
    "group": r"worst[ -]group|groups?",
    "causal-graph": r"causal graph",
    "scm": r"SCM|exogenous noise",
    "counterfactual": r"counterfactuals?",
    "null-intervention": r"null interventions?|reconstructions?",
    "image-mechanism": r"image mechanisms?|decoder",
    "plan": r"plan",
    "shard": r"shards?|manifest",
    "gate": r"gate",
    "care-set": r"care set|care attributes?",
    "leak": r"leaks?",
    "provenance": r"provenance",
    "oracle": r"oracle|gap closed",
    "adjusted-average": r"adjusted average",
    "nmi": r"NMI|Cramér's V",
    "effective-size": r"effective number of images",
    "axioms": r"composition|reversibility|effectiveness|minimality",
    "reader": r"readers?|probes?",
    "methods": r"group_resampling|group_dro|dfr",
}
"""Anchor of the glossary -> the words that are linked to it, once on each page."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
# what is no running text: fences, indented code, headings, HTML, links, inline code
APART = re.compile(
    r"^(?:```|~~~).*?^(?:```|~~~)[ \t]*$|^(?: {4}|\t)[^\n]*$|^#[^\n]*$|<!--.*?-->|<a [^>]*>|!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\)|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)


def elsewhere() -> list[str]:
    """The repository's paths of :data:`ELSEWHERE`."""
    found = (path for pattern in ELSEWHERE for path in sorted(ROOT.glob(pattern)))
    return [path.relative_to(ROOT).as_posix() for path in found if path.is_file()]


def exported(room: str) -> dict[str, str]:
    """Public name -> the module that defines it, read from the imports of the room's ``__init__`` (below TYPE_CHECKING, where they are lazy)."""
    package = ROOT / room.replace(".", "/") / "__init__.py"
    if not package.exists():
        return {}
    found = {
        alias.asname or alias.name: node.module
        for node in ast.walk(ast.parse(package.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cfaug.") and node.module != "cfaug.lazy"
        for alias in node.names
    }  # fmt: skip
    return {name: exported(module).get(name, module) for name, module in found.items()}


def api(room: str) -> str:
    """Directives of mkdocstrings for what a room exports; what a room before it has shown is only named."""
    before = {(name, module) for outer in ROOMS[: ROOMS.index(room)] for name, module in exported(outer).items()}
    names = exported(room)
    again = [f"`{name}`" for name, module in names.items() if (name, module) in before]
    lines = [f"::: {module}.{name}" for name, module in names.items() if (name, module) not in before]
    return "\n\n".join(([f"Also here, and shown above: {', '.join(again)}."] if again else []) + lines)


def linked(markdown: str, link: str) -> str:
    """The first use of each glossary word in running text, as a link to ``link``."""
    left = {anchor: words for anchor, words in WORDS.items() if f"{link}#{anchor})" not in markdown}
    out, start = [], 0

    def first_uses(text: str) -> str:
        for anchor in list(left):
            found = re.search(rf"(?<![\w/.`*-])(?:{left[anchor]})(?![\w/`*-]|\.\w)", text)
            if found and not any(a.start() <= found.start() < a.end() for a in APART.finditer(text)):
                text = f"{text[: found.start()]}[{found[0]}]({link}#{anchor}){text[found.end() :]}"
                del left[anchor]
        return text

    for apart in APART.finditer(markdown):
        out += [first_uses(markdown[start : apart.start()]), apart[0]]
        start = apart.end()
    return "".join([*out, first_uses(markdown[start:])])


def in_repository(page: str) -> str:
    """Where a page of the site lies in the repository."""
    return page if page in elsewhere() else f"docs/{page}"


def relinked(markdown: str, page: str, has: Any) -> str:
    """Links of the repository as links of the site; ``has(path)``: whether the site has it."""

    def one(found: re.Match[str]) -> str:
        image, text, link, anchor = found[1], found[2], found[3], found[4] or ""
        if not link or ":" in link:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(page)), link))
        if not (ROOT / path).exists():
            LOG.warning("%s: there is no %s", page, path)
        target = path.removeprefix("docs/")
        if not has(target) and has(f"{target}/README.md"):
            target += "/README.md"
        if not has(target):
            return text
        return f"{image}[{text}]({os.path.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(one, markdown)


# -- what mkdocs calls -----------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files from outside of docs/."""
    from mkdocs.structure.files import File

    for path in elsewhere():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Everything of the module's first line, for one page."""
    here = page.file.src_uri
    markdown = relinked(markdown, here, lambda path: files.get_file_from_path(path) is not None)
    if here not in ("glossary.md", "CHANGELOG.md"):
        markdown = linked(markdown, os.path.relpath("glossary.md", posixpath.dirname(here) or "."))
    return re.sub(r"<!-- api ([\w.]+) -->", lambda found: api(found[1]), markdown)
