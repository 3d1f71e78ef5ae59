"""The documents keep their promises: no placeholder left, no link to a file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    path
    for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/*.md")) + sorted(ROOT.glob("*/*/*.md"))
    if ".venv" not in str(path)
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_placeholder_and_no_dead_link(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"@@\w*@@|TODO|FIXME|lorem ipsum", text)
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_code_imports_exists(document: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in re.findall(r"^ *(from cfaug[\w.]* import .*)$", block, flags=re.MULTILINE):
            exec(line, {})
