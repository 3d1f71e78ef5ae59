"""The reference of settings, read from the configuration's source: fields, types, defaults and the comments beside them.

python docs/settings.py        # writes them into docs/reference/settings.md

Nothing is imported, so that the site needs neither torch nor pydantic; a test compares the names with ``cfaug.config.option_names()``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("recipe_file", "editor_config", "decoder_config", "train_config", "config")
WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "JsonValue": "anything",
}
ALIASES = {"Count": "whole number from 1", "Number": "whole number from 0", "Seed": "whole number from 0", "Share": "number from 0 to 1",
           "Finite": "number", "Flag": "true or false", "Category": "value"}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One field of a group."""

    name: str
    kind: str
    default: str
    reason: str


@dataclass(frozen=True)
class Group:
    """One dataclass: ``name`` as in a recipe ("" for the recipe itself)."""

    name: str
    about: str
    settings: tuple[Setting, ...]


def groups() -> list[Group]:
    """Every group of settings, in the order of a recipe."""
    classes: dict[str, tuple[ast.ClassDef, str]] = {}
    named: dict[str, ast.expr] = {}
    for file in FILES:
        text = (ROOT / "cfaug" / f"{file}.py").read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and any("settings" in ast.unparse(one) for one in node.decorator_list):
                classes[node.name] = node, text
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named[node.targets[0].id] = node.value
    found: list[Group] = []

    def visit(kind: str, name: str) -> None:
        node, text = classes[kind]
        said, made, inner = _comments(text), [], []
        before = node.lineno
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                dotted = f"{name}.{field.target.id}".lstrip(".")
                if (group := ast.unparse(field.annotation)) in classes:
                    inner.append((group, dotted))
                else:
                    lines = range(before + 1, field.end_lineno + 1 if field.end_lineno else field.lineno + 1)
                    reason = " ".join(said[line] for line in lines if line in said)
                    made.append(Setting(dotted, _kind(field.annotation, named), _default(field.value), reason))
            before = field.end_lineno or before
        found.append(Group(name, ast.get_docstring(node) or "", tuple(made)))
        for group, dotted in inner:
            visit(group, dotted)

    visit("Recipe", "")
    return found


def page() -> str:
    """The page, as Markdown."""
    lines = []
    for group in groups():
        about = group.about.replace("``", "`")
        lines += [
            f"## {group.name or 'The recipe itself'}",
            "",
            about,
            "",
            "| setting | what it takes | default | what it does, and why |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{one.name}` | {_cell(one.kind)} | `{one.default.replace('|', chr(92) + '|')}` | {_cell(one.reason)} |"
            for one in group.settings
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    parts = text.replace("|", "\\|").split("`")  # what stands between two of them is code, and needs no escapes
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _comments(text: str) -> dict[int, str]:
    """Line -> its comment, tools' own marks left out."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}
    return {line: comment for line, comment in found.items() if not comment.startswith(("fmt:", "noqa", "type:"))}


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        factory = next(one.value for one in value.keywords if one.arg == "default_factory")
        value = factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])
    written = "" if value is None else ast.unparse(value)
    written = {"list()": "[]", "dict()": "{}", "None": "null", "True": "true", "False": "false", "''": '""'}.get(
        written, written
    )
    return written if written[:1] not in ("'",) else written.strip("'")


def _kind(node: ast.expr, named: dict[str, ast.expr]) -> str:
    """A type with its range, in words."""
    written = ast.unparse(node)
    if written in ALIASES or written in WORDS:
        return ALIASES.get(written) or WORDS[written]
    if isinstance(node, ast.Name) and node.id in named:
        return _kind(named[node.id], named)
    if isinstance(node, ast.BinOp):
        return f"{_kind(node.left, named)} or {_kind(node.right, named)}"
    if isinstance(node, ast.Subscript):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        outer = ast.unparse(node.value)
        if outer == "Literal":
            return "one of " + ", ".join(str(ast.literal_eval(one)) for one in inside)
        if outer == "list":
            return f"list: {_kind(inside[0], named)}"
        if outer == "dict":
            return f"mapping: name to {_kind(inside[1], named)}"
        if outer == "Annotated":
            return _kind(inside[0], named) + _range(" ".join(ast.unparse(one) for one in inside[1:]))
    raise ValueError(f"expected a type of settings, got {written}; teach docs/settings.py to say it")


def _range(rules: str) -> str:
    bounds = dict(re.findall(r"(ge|gt|le|multiple_of|min_length)=([\w.\-]+)", rules))
    words = {
        "ge": "at least",
        "gt": "more than",
        "le": "at most",
        "multiple_of": "divisible by",
        "min_length": "entries at least",
    }
    said = ", ".join(f"{words[rule]} {bound.replace('_', '')}" for rule, bound in bounds.items())
    return f", {said}" if said else ""


PAGE = ROOT / "docs" / "reference" / "settings.md"
MARK = "<!-- made by docs/settings.py: what follows is overwritten -->\n"


def written() -> str:
    """What the page should be."""
    return PAGE.read_text(encoding="utf-8").split(MARK)[0] + MARK + "\n" + page()


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
