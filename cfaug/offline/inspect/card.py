"""The dataset card of a directory of shards: what is in it, and the schema for Hugging Face ``datasets``.

The schema is written down because ``datasets`` otherwise infers it from the first five samples and drops, without a
word, every name of ``do`` that only occurs later. ``load_dataset(DIR)`` uses the card; ``load_dataset("webdataset",
data_files=...)`` does not see it and relies on the plan's leading real rows.

It depends on plan, schema and one manifest row, so every engine writes the same bytes. It states no licence: that of the
source images decides, and only the user knows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from cfaug.data import Schema
from cfaug.offline.format import FORMAT, MANIFEST, ManifestRow, shard_pattern
from cfaug.offline.plan import Plan

TITLE = "Counterfactual images"
# of https://huggingface.co/docs/hub/datasets-cards: what the hub's filter by size knows
_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip


def card(
    plan: Plan, schema: Schema, padded: bool = False, image: str = "png", example: ManifestRow | None = None
) -> str:
    """The text of ``README.md``: a YAML header for ``datasets`` and a paragraph for people.

    Args:
        padded: every record says in ``quality`` how much its source was padded for the model.
        image: the image field, ``png`` or ``webp``.
        example: any row of the manifest, for the model's digest and the versions; they are the same in all rows.
    """
    texts = ("key", "source_key", "source_digest", "split")
    lines = [
        "---",
        f"pretty_name: {json.dumps(f'{TITLE} ({plan.split})')}",
        "tags: [counterfactual, synthetic, webdataset, cfaug]",
        f"size_categories: [{size_category(len(plan))}]",
        *(["task_categories: [image-classification]"] if schema.target is not None else []),
        "configs:",
        "- config_name: default",
        "  data_files:",
        f"  - {{split: {plan.split}, path: {shard_pattern(plan.split)}}}",
        "dataset_info:",
        "  features:",
        "  - {name: __key__, dtype: string}",
        "  - {name: __url__, dtype: string}",
        "  - name: json",
        "    struct:",
        "    - {name: schema, dtype: int64}",
        *(f"    - {{name: {name}, dtype: string}}" for name in texts),
        *_struct("do", intervened(plan, schema) or schema.names, schema),
        *_struct("attributes", schema.names, schema),
        *_struct("factual", schema.names, schema),
        f"    - {{name: target, dtype: {_type(schema, schema.target)}}}",
        "    - {name: seed, dtype: int64}",
        "    - {name: replica, dtype: int64}",
        "    - {name: model, dtype: string}",
        "    - name: quality",
        "      struct:",
        "      - {name: change_l1, dtype: float64}",
        *(f"      - {{name: padding_{side}, dtype: int64}}" for side in ("bottom", "right") if padded),
        f"  - {{name: {image}, dtype: image}}",
        "---",
        "",
        f"# {TITLE}",
        "",
        described(plan),
        "",
        f"Shard format {FORMAT}: `<key>.{image}` and `<key>.json` a sample; `{MANIFEST}` says what is committed.",
        "",
        "Made from",
        "",
        f"- plan `{plan.digest}` {json.dumps(plan.settings, sort_keys=True)}",
        f"- {plan.summary.sources} sources, sha256 of their sorted keys `{plan.summary.sources_sha256}`",
    ]
    if example is not None:
        lines.append(f"- model `{example.model}`")
        lines.append("- " + ", ".join(f"{name} {value}" for name, value in sorted(example.environment.items())))
    return "\n".join([*lines, ""])


def described(plan: Plan) -> str:
    """What the images are, in three sentences."""
    of = plan.summary
    return (
        f"{of.rows} images in {of.shards} shards, made by cfaug from {of.sources} images of the {plan.split} split: "
        f"{of.rows - of.nulls} under interventions and {of.nulls} null interventions (`do` empty).\n"
        "They are synthetic: each shows what its source might have looked like under `do`, if the assumptions of the\n"
        "graph and of the model that made it hold."
    )


def intervened(plan: Plan, schema: Schema) -> tuple[str, ...]:
    """The attributes that the plan intervenes on, in the schema's order."""
    return tuple(name for name in schema.names if name in plan.summary.names)


def size_category(images: int) -> str:
    """The hub's name for a number of images."""
    return next((name for most, name in _SIZES if images < most), "n>1T")


def _struct(field: str, names: Iterable[str], schema: Schema) -> list[str]:
    # json.dumps of a text is a YAML double-quoted scalar, whatever the attribute is called
    entries = [f"      - {{name: {json.dumps(name)}, dtype: {_type(schema, name)}}}" for name in names]
    return [f"    - name: {field}", "      struct:", *entries]


def _type(schema: Schema, name: str | None) -> str:
    return "float64" if name is not None and schema[name].kind == "continuous" else "string"
