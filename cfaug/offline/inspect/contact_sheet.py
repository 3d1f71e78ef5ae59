"""A contact sheet: a PNG with one row per source, which shows its attributes, its null intervention and its counterfactuals.

Sources and counterfactuals are chosen greedily, so that every value set by do() and every group (target value and value set)
appears as early as possible; `seed` decides between equally good ones. Of more than `SHARDS` shards only so many, drawn by
`seed`, are read. Pixels are shown unchanged: small images are enlarged by whole factors, without smoothing.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cfaug.data.files import replace_file
from cfaug.data.groups import quarter, quartiles
from cfaug.data.images import Pixels, to_pil
from cfaug.errors import StorageError, UsageError, one_line
from cfaug.offline.format import Record, Value
from cfaug.offline.read_committed import Committed

SHARDS = 200
SOURCES = 2_000  # the first so many that are read; the rows are chosen among them
_SIDE = 128  # px that a small image is enlarged to, about
_LARGEST = 256
_LINE, _LINES = 15, 4  # px of a line of text, lines below an image

Item = tuple[str, ...]  # (name, level) of do(), or (target, name, level)


@dataclass
class Shown:
    """One image of the sheet: the record and, once it is chosen, the pixels."""

    shard: int
    record: Record
    items: frozenset[Item] = frozenset()
    image: Pixels | None = None


@dataclass
class Source:
    """A source's null intervention, where it has one, and its counterfactuals."""

    null: Shown | None = None
    made: list[Shown] = field(default_factory=list)

    @property
    def shown(self) -> list[Shown]:
        """All of them, the null intervention first."""
        return [*([self.null] if self.null else []), *self.made]


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
        raise UsageError(f"expected at least one row and one column, got {rows} x {columns}; raise them")
    if path.suffix.lower() != ".png":
        raise UsageError(f"expected a file name that ends in .png for the contact sheet, got {path.name!r}; rename it")
    shards = Committed(place)
    chosen = choose(shards, rows, columns, seed)
    wanted = {shown.record["key"]: shown for source in chosen for shown in source.shown}
    for number in sorted({shown.shard for shown in wanted.values()}):
        for sample in shards.samples(shards.manifest[number]):
            if sample.row.key in wanted:
                wanted[sample.row.key].image = sample.image()
    content = io.BytesIO()
    _drawn(chosen).save(content, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose a different file") from None
    return path


# --- which sources
def choose(shards: Committed, rows: int, columns: int, seed: int = 0) -> list[Source]:
    """The sources of a sheet, each with at most `columns` counterfactuals, without their pixels."""
    rng = random.Random(seed)
    sources: dict[str, Source] = {}
    for number in sorted(rng.sample(range(len(shards.manifest)), min(SHARDS, len(shards.manifest)))):
        for sample in shards.samples(shards.manifest[number]):
            if sample.row.source_key not in sources and len(sources) >= SOURCES:
                continue
            source = sources.setdefault(sample.row.source_key, Source())
            if sample.row.null:
                source.null = source.null or Shown(number, sample.record())
            elif len(source.made) < 4 * columns:
                source.made.append(Shown(number, sample.record()))
    _name_items([shown for source in sources.values() for shown in source.made])
    pool = list(sources.values())
    rng.shuffle(pool)
    pool.sort(key=lambda source: (not source.made, source.null is None))  # a stable sort: complete sources come first
    seen: set[Item] = set()
    chosen: list[Source] = []
    while pool and len(chosen) < rows:
        found = [_cover(source.made, columns, seen) for source in pool]
        gains = [len(frozenset().union(*(shown.items for shown in made)) - seen) for made in found]
        best = gains.index(max(gains))
        seen.update(*(shown.items for shown in found[best]))
        chosen.append(Source(pool.pop(best).null, found[best]))
    return sorted(chosen, key=lambda one: (str(one.shown[0].record["target"]), one.shown[0].record["source_key"]))


def _cover(made: Sequence[Shown], columns: int, seen: set[Item]) -> list[Shown]:
    """At most `columns` of `made`: what has not been seen first, then what this row does not have yet."""
    left, here = list(made), set[Item]()
    picked: list[Shown] = []
    while left and len(picked) < columns:
        best = max(left, key=lambda shown: (len(shown.items - seen - here), len(shown.items - here)))
        left.remove(best)
        picked.append(best)
        here |= best.items
    return sorted(picked, key=lambda shown: sorted((name, str(value)) for name, value in shown.record["do"].items()))


def _name_items(made: Iterable[Shown]) -> None:
    """Give each counterfactual its values and groups; a number counts as the quarter it is in."""
    made = list(made)
    columns: dict[str, list[float]] = {}
    for name, value in (pair for shown in made for pair in shown.record["do"].items()):
        if isinstance(value, int | float):
            columns.setdefault(name, []).append(value)
    cuts = {name: quartiles(np.array(values, dtype=np.float64)) for name, values in columns.items()}
    for shown in made:
        items: set[Item] = set()
        for name, value in shown.record["do"].items():
            number = isinstance(value, int | float)
            level = str(quarter(np.array([value], dtype=np.float64), cuts[name])[0]) if number else str(value)
            items |= {(name, level), (str(shown.record["target"]), name, level)}
        shown.items = frozenset(items)


# --- the picture
def _drawn(chosen: Sequence[Source]) -> Image.Image:
    import torch
    from torchvision.utils import make_grid

    longest = max(max(shown.image.shape[:2]) for one in chosen for shown in one.shown if shown.image is not None)
    side = longest * max(1, _SIDE // longest) if longest <= _LARGEST else _LARGEST
    with_nulls = any(source.null for source in chosen)
    width = 1 + with_nulls + max(len(source.made) for source in chosen)
    cells: list[Pixels] = []
    for source in chosen:
        first = source.shown[0].record
        factual = [f"{name}={_value(value)}" for name, value in first["factual"].items()]
        row = [_cell(None, [first["source_key"], *factual], side, side // _LINE + _LINES)]
        row += [_cell(None, [], side)] * (with_nulls and source.null is None)
        row += [_cell(shown.image, _caption(shown.record), side) for shown in source.shown]
        cells += row + [_cell(None, [], side)] * (width - len(row))
    tiles = torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2)
    grid = make_grid(tiles, nrow=width, padding=10, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def _cell(image: Pixels | None, lines: Sequence[str], side: int, most: int = _LINES) -> Pixels:
    """One tile of the sheet: the image above its lines of text; without an image, text from the top."""
    tile = Image.new("RGB", (max(side, 128), side + _LINES * _LINE), "white")
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
    top = 0
    if image is not None:
        picture = _scaled(image, side)
        tile.paste(picture, (0, (side - picture.height) // 2))
        top = side + 2
    shown = list(lines) if len(lines) <= most else [*lines[: most - 1], f"... {len(lines) - most + 1} more"]
    for number, line in enumerate(shown):
        pen.text((0, top + number * _LINE), _fitted(line, tile.width, font), "black", font)
    return np.asarray(tile)


def _caption(record: Record) -> list[str]:
    """The assignments, one per line; what followed from them in brackets."""
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


def _scaled(image: Pixels, side: int) -> Image.Image:
    picture = to_pil(image).convert("RGB")
    longest = max(picture.size)
    if longest > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return picture
    factor = side // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = one_line(text, 200)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
