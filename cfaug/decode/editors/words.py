"""do() as words: ``template`` filled with the words of every attribute, or the words of what is intervened on alone.

    "a photo of a {species}, {background}"   do(background=water)   ->   "a photo of a duck, on the open sea"
    no template                              do(background=water)   ->   "put it on the open sea"

A continuous attribute has named ranges, ``a..b`` for a <= value < b, either end open: ``{age: {"..30": young, "30..": old}}``.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pandas as pd

from cfaug.data import Schema
from cfaug.errors import UsageError, near

_RANGE = re.compile(r"\s*(-?[\d.]+(?:e-?\d+)?)?\s*\.\.\s*(-?[\d.]+(?:e-?\d+)?)?\s*", re.IGNORECASE)


class Words:
    """Prompts of rows of attributes.

    Args:
        schema: the attributes.
        parents: the image's parents, which alone may be named.
        template: with ``{attribute}`` where its words go; None for the words of interventions alone.
        words: attribute -> value or range -> words. A category without words is called by its name.
        as_tokens: say each category by a token of its own, which was learned for it.

    Raises:
        UsageError: an attribute, value or range that is not there or cannot be read.
    """

    def __init__(
        self, schema: Schema, parents: Collection[str], template: str | None, words: Mapping[str, Mapping[str, str]],
        as_tokens: bool = False,
    ) -> None:  # fmt: skip
        self.schema, self.template, self.words, self.as_tokens = schema, template, words, as_tokens
        self.parents = tuple(parents)
        try:
            self.named = (
                []
                if template is None
                else [str(n) for _, n, _, _ in string.Formatter().parse(template) if n is not None]
            )
        except ValueError as error:
            raise UsageError(
                f"decoder.editor.template: expected {{attribute}} in braces, got {template!r} ({error})"
            ) from None
        for where, names in (("template", self.named), ("words", words)):
            if stray := next((name for name in names if name not in parents), None):
                raise UsageError(
                    f"decoder.editor.{where}: expected parents of the image, got {stray!r}; {near(stray, list(parents))}"
                )
        self.ranges = {
            name: list(_ranges(name, own)) for name, own in words.items() if schema[name].kind == "continuous"
        }
        for name, own in words.items():
            known = schema[name].values  # None before the schema is fitted
            if known is not None and (unknown := next((value for value in own if value not in known), None)):
                raise UsageError(
                    f"decoder.editor.words.{name}: expected values of {name}, got {unknown!r}; {near(unknown, known)}"
                )

    def check(self, changed: Collection[str]) -> None:
        """UsageError unless every attribute that is intervened on can be said."""
        for name in changed:
            if self.template is not None and name not in self.named:
                raise UsageError(
                    f"decoder.editor.template: expected {{{name}}}, which is intervened on, got {self.template!r}; without its word nothing "
                    "would change"
                )
            if self.schema[name].kind == "continuous" and not self.ranges.get(name):
                raise UsageError(
                    f'decoder.editor.words.{name}: expected named ranges of a continuous attribute, got none; write {name}: {{"..0": ..., "0..": ...}}'
                )

    def of(self, name: str, value: Any) -> str:
        """The words of a value; nothing for a missing one."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if self.schema[name].kind != "continuous":
            return _token(name, value) if self.as_tokens else self._plain(name, value)
        for low, high, text in self.ranges.get(name, []):
            if low <= float(value) < high:
                return text
        raise UsageError(
            f"decoder.editor.words.{name}: expected a range that holds {float(value):g}, got none; add one, open at its end"
        )

    def _plain(self, name: str, value: Any) -> str:
        return self.words.get(name, {}).get(str(value), str(value).replace("_", " "))

    def tokens(self) -> dict[str, str]:
        """The token of each category that can be named -> the words that it stands for at first."""
        names = [name for name in self.named or self.schema.names if self.schema[name].kind != "continuous"]
        return {
            _token(name, value): self._plain(name, value) for name in names for value in self.schema[name].categories
        }

    def prompt(self, row: Mapping[str, Any], changed: Collection[str]) -> str:
        """The prompt of a row of attributes in which ``changed`` were intervened on."""
        if self.template is None:
            said = [self.of(name, row[name]) for name in self.schema.names if name in changed]
            return ", ".join(text for text in said if text)
        filled = self.template.format(**{name: self.of(name, row[name]) for name in self.named})
        return re.sub(r"\s+", " ", re.sub(r"\s*,(?=\s*(,|$))", "", filled)).strip()

    def longest(self, changed: Collection[str]) -> str:
        """The longest prompt there can be, by the length of its words."""
        row: dict[str, Any] = {}
        for name in {*self.named, *changed}:
            if self.schema[name].kind == "continuous":
                low, high, _ = max(self.ranges.get(name, []), key=lambda one: len(one[2]), default=(0.0, 0.0, ""))
                row[name] = low if math.isfinite(low) else high - 1 if math.isfinite(high) else 0.0
            else:
                row[name] = max(self.schema[name].categories, key=lambda value: len(self.of(name, value)))
        return self.prompt(row, changed)

    def prompts(self, table: pd.DataFrame, changed: Collection[Collection[str]]) -> list[str]:
        """Of each row of ``table`` the prompt."""
        rows = table.to_dict("records")
        return [self.prompt({str(k): v for k, v in row.items()}, own) for row, own in zip(rows, changed)]


def _token(name: str, value: Any) -> str:
    return "<" + re.sub(r"\W+", "-", f"{name}-{value}".lower()) + ">"


def _ranges(name: str, own: Mapping[str, str]) -> Iterator[tuple[float, float, str]]:
    for key, text in own.items():
        found = _RANGE.fullmatch(str(key))
        if found is None:
            raise UsageError(
                f'decoder.editor.words.{name}: expected ranges such as "30..60", "..30" or "60..", got {key!r}; {name} is continuous'
            )
        low, high = (math.inf * sign if part is None else float(part) for sign, part in zip((-1, 1), found.groups()))
        if not low < high:
            raise UsageError(f"decoder.editor.words.{name}: expected a range whose end is above its start, got {key!r}")
        yield low, high, text
