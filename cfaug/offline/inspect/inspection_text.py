"""An inspection as a few aligned lines for people; every figure is in its JSON as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ROWS = 12  # of a table, and values of an attribute
_ATTRIBUTES = 12


def text(found: Mapping[str, Any], stats: str | None = None) -> str:
    """`found`: :meth:`cfaug.offline.inspect.inspection.Inspection.to_json`; `stats`: what the logs say."""
    counterfactuals = found["samples"] - found["nulls"]
    facts = [
        ("place", found["place"]),
        ("shards", f"{found['shards']}, {_bytes(found['bytes'])}"),
        ("samples", f"{found['samples']}: {counterfactuals} counterfactuals, {found['nulls']} null interventions"),
        ("sources", f"{found['sources']}, {found['samples'] / max(1, found['sources']):.1f} images each"),
        ("images", f"{_sizes(found['sizes'])}, {'/'.join(found['formats'])}, {_bytes(found['image_bytes'])} each"),
        ("replicas", _counts(found["replicas"])),
        *(
            ("null interventions" if kind == "null" else "counterfactuals", _change(row))
            for kind, row in found["change"].items()
        ),
        ("do(...) on", _counts(found["interventions"])),
    ]
    parts = [_aligned(facts)]
    intervened = {name for names in found["interventions"] for name in names.split("+")}
    # what was acted on first: the rest is there to see that it stayed
    names = sorted(found["groups"], key=lambda name: name not in intervened)
    parts.append("values, of the sources -> of the counterfactuals")
    shown = [*([found["target"]] if found["target"] else []), *names]
    parts.append(_aligned([(name, _values(found["attributes"][name])) for name in shown[:_ATTRIBUTES]], "  "))
    if len(shown) > _ATTRIBUTES:
        parts.append(f"  ... and {len(shown) - _ATTRIBUTES} more (--json has them all)")
    target = found["target"] or "target"
    for name in [name for name in names if name in intervened][:4]:
        parts += [f"groups, {target} x {name}: of the sources -> of the counterfactuals", _table(found["groups"][name])]
    rows = [("", "before", "chance", "after", "chance", "")]
    for name in names[:_ATTRIBUTES]:
        before, after = found["confounding"][name]["before"], found["confounding"][name]["after"]
        rows.append((name, *_nmi(before), *_nmi(after), "" if name in intervened else "(not intervened on)"))
    parts += [f"confounding with {target}: normalised mutual information, 0 none to 1 complete", _grid(rows)]
    if stats is not None:
        parts += ["generation, from its log", *(f"  {line}" for line in stats.splitlines())]
    return "\n".join(parts)


def _aligned(pairs: Iterable[tuple[str, str]], indent: str = "") -> str:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in pairs)


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    first = "  {:<{}}"
    return "\n".join(
        (first.format(row[0], widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))).rstrip()
        for row in rows
    )  # fmt: skip


def _table(groups: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    targets = list(dict.fromkeys(t for side in groups.values() for t in side))
    levels = sorted({level for side in groups.values() for row in side.values() for level in row})
    rows = [["", *levels[:_ROWS], *(["..."] if len(levels) > _ROWS else [])]]
    for target in sorted(targets)[:_ROWS]:
        pairs = (
            [groups[kind].get(target, {}).get(level, 0) for kind in ("factual", "counterfactual")]
            for level in levels[:_ROWS]
        )
        rows.append(
            [target, *(f"{before} -> {after}" for before, after in pairs), *([""] if len(levels) > _ROWS else [])]
        )
    return _grid(rows) + (f"\n  ... {len(targets) - _ROWS} more rows" if len(targets) > _ROWS else "")


def _values(row: Mapping[str, Any]) -> str:
    sides = (row["factual"], row["counterfactual"])
    if row["kind"] == "continuous":
        said = " -> ".join(f"{s['mean']:.3g} [{s['min']:.3g}, {s['max']:.3g}]" if s["n"] else "none" for s in sides)
    else:
        values = sorted({*sides[0], *sides[1]})
        pairs = [f"{value} {sides[0].get(value, 0)} -> {sides[1].get(value, 0)}" for value in values[:_ROWS]]
        said = ", ".join([*pairs, *(["..."] if len(values) > _ROWS else [])])
    missing = row["missing"]
    if any(missing.values()):
        said += f" (missing {missing['factual']} -> {missing['counterfactual']})"
    return said


def _nmi(row: Mapping[str, float] | None) -> tuple[str, str]:
    return ("no rows", "") if row is None else (f"{row['nmi']:.3f}", f"{row['nmi_chance']:.3f}")


def _change(row: Mapping[str, float]) -> str:
    return f"L1 from the source {row['median']:.4f} (median), {row['q05']:.4f} to {row['q95']:.4f} (5 to 95 %)"


def _counts(counts: Mapping[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda pair: -pair[1])[:_ROWS]
    return ", ".join([*(f"{name} {n}" for name, n in shown), *(["..."] if len(counts) > _ROWS else [])])


def _sizes(sizes: Mapping[str, int]) -> str:
    shown = sorted(sizes, key=lambda size: -sizes[size])[:4]
    return ", ".join([*shown, *(["..."] if len(sizes) > 4 else [])]) + " px"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
