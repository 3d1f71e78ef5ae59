"""An inspection as aligned lines for people. Every figure is also in its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ROWS = 12  # of a table, values of an attribute, attributes of a list


def text(found: Mapping[str, Any], stats: str | None = None) -> str:
    """The text of `found`, which is ``Inspection.to_json()``; `stats` is the summary of the logs."""
    from tqdm import tqdm

    size, counterfactuals = tqdm.format_sizeof, found["samples"] - found["nulls"]
    facts = [
        ("place", found["place"]),
        ("shards", f"{found['shards']}, {size(found['bytes'], 'B')}"),
        ("samples", f"{found['samples']}: {counterfactuals} counterfactuals, {found['nulls']} null interventions"),
        ("sources", f"{found['sources']}, {found['samples'] / max(1, found['sources']):.1f} images each"),
        ("images", f"{_cut(found['sizes'])} px, {'/'.join(found['formats'])}, {size(found['image_bytes'], 'B')} each"),
        ("replicas", _counts(found["replicas"])),
        *(
            (
                "null interventions" if kind == "null" else "counterfactuals",
                f"L1 from the source {row['median']:.4f} (median), {row['q05']:.4f} to {row['q95']:.4f} (5 to 95 %)",
            )
            for kind, row in found["change"].items()
        ),
        ("do(...) on", _counts(found["interventions"])),
    ]
    target = found["target"] or "target"
    intervened = {name for names in found["interventions"] for name in names.split("+")}
    # attributes that were intervened on come first; the others show whether they stayed the same
    names = sorted(found["groups"], key=lambda name: name not in intervened)
    shown = [*([found["target"]] if found["target"] else []), *names]
    parts = [_grid(facts), "values, of the sources -> of the counterfactuals"]
    parts.append(_grid([(f"  {name}", _values(found["attributes"][name])) for name in shown[:_ROWS]]))
    if len(shown) > _ROWS:
        parts.append(f"  ... and {len(shown) - _ROWS} more (--json has them all)")
    for name in [name for name in names if name in intervened][:4]:
        parts += [f"groups, {target} x {name}: of the sources -> of the counterfactuals", _table(found["groups"][name])]
    rows = [("  ", "before", "chance", "after", "chance", "")]
    for name in names[:_ROWS]:
        sides = (found["confounding"][name][when] for when in ("before", "after"))
        nmi = [("no rows", "") if row is None else (f"{row['nmi']:.3f}", f"{row['nmi_chance']:.3f}") for row in sides]
        rows.append((f"  {name}", *nmi[0], *nmi[1], "" if name in intervened else "(not intervened on)"))
    parts += [f"confounding with {target}: normalised mutual information, 0 none to 1 complete", _grid(rows, ">")]
    if stats is not None:
        parts += ["generation, from its log", *(f"  {line}" for line in stats.splitlines())]
    return "\n".join(parts)


def _grid(rows: Sequence[Sequence[str]], align: str = "<") -> str:
    """Rows as aligned columns: the first is aligned to the left, the rest as `align` says."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{align if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


def _table(groups: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    targets = sorted({target for side in groups.values() for target in side})
    levels = sorted({level for side in groups.values() for row in side.values() for level in row})
    more = ["..."] if len(levels) > _ROWS else []
    rows = [["  ", *levels[:_ROWS], *more]]
    for target in targets[:_ROWS]:
        before, after = (groups[kind].get(target, {}) for kind in ("factual", "counterfactual"))
        cells = [f"{before.get(level, 0)} -> {after.get(level, 0)}" for level in levels[:_ROWS]]
        rows.append([f"  {target}", *cells, *("" for _ in more)])
    return _grid(rows, ">") + (f"\n  ... {len(targets) - _ROWS} more rows" if len(targets) > _ROWS else "")


def _values(row: Mapping[str, Any]) -> str:
    sides, missing = (row["factual"], row["counterfactual"]), row["missing"]
    if row["kind"] == "continuous":
        said = " -> ".join(f"{s['mean']:.3g} [{s['min']:.3g}, {s['max']:.3g}]" if s["n"] else "none" for s in sides)
    else:
        said = _cut(f"{v} {sides[0].get(v, 0)} -> {sides[1].get(v, 0)}" for v in sorted({*sides[0], *sides[1]}))
    if any(missing.values()):
        said += f" (missing {missing['factual']} -> {missing['counterfactual']})"
    return said


def _counts(counts: Mapping[str, int]) -> str:
    return _cut(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda pair: -pair[1]))


def _cut(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(words[:_ROWS] + (["..."] if len(words) > _ROWS else []))
