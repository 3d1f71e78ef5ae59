"""A contact sheet: a PNG with a row for each of some sources: its null intervention where there is one, counterfactuals.

Sources and counterfactuals are chosen greedily so that every value set by do() and every group (target value and value
set) is seen as early as it can be; equally good ones by `seed`. Of more than `SHARDS` shards only so many, drawn by `seed`, are looked
at. Pixels are shown as they are: small images by whole factors, without smoothing.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cfaug.data.files import replace_file
from cfaug.errors import StorageError, UsageError, one_line
from cfaug.offline.committed import Committed
from cfaug.offline.format import IndexRow, ManifestRow, Record, Value
from cfaug.offline.inspect.inspection import quartiles

SHARDS = 200
SOURCES = 2_000  # of which the rows are chosen, in the order they are met
_SIDE = 128  # px that a small image is brought up to, about
_LARGEST = 256
_GAP, _LINES, _FONT = 10, 4, 12
_PAPER, _INK, _PALE, _EDGE = (255, 255, 255), (32, 32, 32), (110, 110, 110), (205, 205, 205)

Item = tuple[str, ...]  # (name, level) of do(), or (target, name, level)


@dataclass
class _Shown:
    """One image of the sheet: where it is and what its record says."""

    shard: ManifestRow
    sample: IndexRow
    record: Record
    items: frozenset[Item] = frozenset()
    image: npt.NDArray[np.uint8] | None = None


@dataclass
class _Source:
    null: _Shown | None = None
    made: list[_Shown] = field(default_factory=list)


def contact_sheet(place: str | Path, path: str | Path, rows: int = 8, columns: int = 6, seed: int = 0) -> Path:
    """Draw the sheet of a run, its shards, or shards at a URL into the PNG file `path`, which is replaced.

    Args:
        rows: sources, at most; columns: counterfactuals of each, at most (its null intervention comes before them).

    Raises:
        UsageError: rows or columns below 1, or a file name that does not end in ``.png``.
        ShardError: nothing is committed, or a sample is not what the manifest vouches for.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    if rows < 1 or columns < 1:
        raise UsageError(f"expected at least one row and one column, got {rows} x {columns}")
    if path.suffix.lower() != ".png":
        raise UsageError(f"expected a file name that ends in .png for the contact sheet, got {path.name!r}")
    shards = Committed(place)
    chosen = _choose(shards, rows, columns, seed)
    _load(shards, chosen)
    content = io.BytesIO()
    _draw(chosen, shards.storage.url).save(content, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose another file") from None
    return path


# --- which sources
def _choose(shards: Committed, rows: int, columns: int, seed: int) -> list[_Source]:
    rng = random.Random(seed)
    looked = sorted(rng.sample(shards.manifest, min(SHARDS, len(shards.manifest))), key=lambda row: row.name)
    sources: dict[str, _Source] = {}
    for shard in looked:
        for opened in shards.samples(shard):
            sample = opened.row
            if sample.source_key not in sources and len(sources) >= SOURCES:
                continue
            source = sources.setdefault(sample.source_key, _Source())
            if sample.null:
                source.null = source.null or _Shown(shard, sample, opened.record())
            elif len(source.made) < 4 * columns:
                source.made.append(_Shown(shard, sample, opened.record()))
    edges = _quartiles(shown.record for source in sources.values() for shown in source.made)
    for source in sources.values():
        for shown in source.made:
            shown.items = _items(shown.record, edges)
    pool = list(sources.values())
    rng.shuffle(pool)
    pool.sort(key=lambda source: (not source.made, source.null is None))  # stable: the best kept ones first
    seen: set[Item] = set()
    chosen: list[_Source] = []
    while pool and len(chosen) < rows:
        found = [_cover(source.made, columns, seen) for source in pool]
        gains = [len(frozenset().union(*(shown.items for shown in made)) - seen) for made in found]
        best = max(range(len(pool)), key=lambda i: (gains[i], -i))
        seen.update(*(shown.items for shown in found[best]))
        chosen.append(_Source(pool.pop(best).null, found[best]))
    return sorted(chosen, key=_order)


def _cover(made: Sequence[_Shown], columns: int, seen: set[Item]) -> list[_Shown]:
    """At most `columns` of `made`: what has not been seen first, then what this row does not have yet."""
    left, here = list(made), set[Item]()
    picked: list[_Shown] = []
    while left and len(picked) < columns:
        best = max(left, key=lambda shown: (len(shown.items - seen - here), len(shown.items - here)))
        left.remove(best)
        picked.append(best)
        here |= best.items
    return sorted(picked, key=lambda shown: sorted((name, str(value)) for name, value in shown.record["do"].items()))


def _order(source: _Source) -> tuple[str, str]:
    first = source.null or source.made[0]
    return str(first.record["target"]), first.sample.source_key


def _quartiles(records: Iterable[Record]) -> dict[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    for record in records:
        for name, value in record["do"].items():
            if not isinstance(value, str) and value is not None:
                numbers.setdefault(name, []).append(value)
    return {name: quartiles(values) for name, values in numbers.items()}


def _items(record: Record, edges: dict[str, list[float]]) -> frozenset[Item]:
    items: set[Item] = set()
    for name, value in record["do"].items():
        level = value if isinstance(value, str) else str(int(np.searchsorted(edges.get(name, []), value or 0.0)))
        items |= {(name, level), (str(record["target"]), name, level)}
    return frozenset(items)


def _load(shards: Committed, chosen: Sequence[_Source]) -> None:
    wanted: dict[str, dict[str, _Shown]] = {}
    for source in chosen:
        for shown in (*([source.null] if source.null else []), *source.made):
            wanted.setdefault(shown.shard.name, {})[shown.sample.key] = shown
    for here in wanted.values():
        for opened in shards.samples(next(iter(here.values())).shard):
            if opened.row.key in here:
                here[opened.row.key].image = opened.image()


# --- the picture
def _draw(chosen: Sequence[_Source], title: str) -> Image.Image:
    font, small = _font(_FONT), _font(_FONT - 1)
    images = [
        shown.image for source in chosen for shown in (source.null, *source.made) if shown and shown.image is not None
    ]
    longest = max(max(image.shape[:2]) for image in images)
    side = longest * max(1, _SIDE // longest) if longest <= _LARGEST else _LARGEST
    cell = max(side, 96)
    step_x, step_y = cell + _GAP, side + _LINES * (_FONT + 3) + 2 * _GAP
    with_nulls = any(source.null for source in chosen)
    label = 150
    width = label + step_x * (with_nulls + max(len(source.made) for source in chosen)) + 2 * _GAP
    top = 2 * _GAP + 2 * (_FONT + 4)
    sheet = Image.new("RGB", (width, top + step_y * len(chosen)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, _INK, font)
    heading = (
        "each row one source; "
        + ("its null intervention, then " if with_nulls else "")
        + "counterfactuals under do(...)"
    )
    pen.text((_GAP, _GAP + _FONT + 4), heading, _PALE, small)
    for r, source in enumerate(chosen):
        y = top + r * step_y
        pen.line((_GAP, y - _GAP, width - _GAP, y - _GAP), _EDGE)
        first = source.null or source.made[0]
        said = [f"{name}={_value(value)}" for name, value in first.record["factual"].items()]
        _write(pen, (_GAP, y), [first.sample.source_key], label - _GAP, font, _INK, 2)
        _write(
            pen,
            (_GAP, y + 2 * (_FONT + 3)),
            said,
            label - _GAP,
            small,
            _PALE,
            max(2, (step_y - _GAP) // (_FONT + 3) - 3),
        )
        cells = [*([source.null] if with_nulls else []), *source.made]
        for c, shown in enumerate(cells):
            if shown is None or shown.image is None:
                continue
            x = label + _GAP + c * step_x
            picture = _scaled(shown.image, side)
            at = (x, y + (side - picture.height) // 2)
            sheet.paste(picture, at)
            pen.rectangle((at[0] - 1, at[1] - 1, at[0] + picture.width, at[1] + picture.height), outline=_EDGE)
            _write(pen, (x, y + side + 3), _caption(shown.record), cell, small, _INK, _LINES)
    return sheet


def _caption(record: Record) -> list[str]:
    """The assignments, a line each; what followed from them in brackets."""
    if not record["do"]:
        return ["null intervention"]
    attributes, factual = record["attributes"], record["factual"]
    followed = [n for n, v in attributes.items() if n not in record["do"] and v != factual.get(n)]
    return [
        *(f"{n}={_value(v)}" for n, v in record["do"].items()),
        *(f"({n} {_value(attributes[n])})" for n in followed),
    ]


def _value(value: Value) -> str:
    return "?" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _scaled(image: npt.NDArray[np.uint8], side: int) -> Image.Image:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
    longest = max(picture.size)
    if longest > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return picture
    factor = side // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _write(pen: Any, at: tuple[int, int], texts: Sequence[str], width: int, font: Any, colour: Any, lines: int) -> None:
    """At most `lines` lines of at most `width` px, every text on its own; what does not fit ends in dots."""
    shown = [_fitted(text, width, font) for text in texts]
    if len(shown) > lines:
        shown = [*shown[: lines - 1], f"... {len(shown) - lines + 1} more"]
    for number, text in enumerate(shown):
        pen.text((at[0], at[1] + number * (_FONT + 3)), text, colour, font)


def _fitted(text: str, width: int, font: Any) -> str:
    text = one_line(text, 200)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow 10.0
        return ImageFont.load_default()
