"""The dataset card of a directory of shards: what is in it, and the schema for Hugging Face ``datasets``.

The schema is written down because ``datasets`` otherwise infers it from the first five samples and drops, without a
word, every name of ``do`` that only occurs later. ``load_dataset(DIR)`` uses the card; ``load_dataset("webdataset",
data_files=...)`` does not see it and relies on the plan's leading real rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from cfaug.data import Schema
from cfaug.offline.format import FORMAT
from cfaug.offline.plan import Plan


def card(plan: Plan, schema: Schema, padded: bool = False) -> str:
    """The text of ``README.md``: a YAML header for ``datasets`` and a paragraph for people. Depends on content only.

    ``padded``: every record says in ``quality`` how much its source was padded for the model.
    """
    shards = plan.shards()
    distinct = {row.do for row in plan}
    intervened = [n for n in schema.names if any(n in do.assignments for do in distinct)] or list(schema.names)
    nulls = sum(row.do.is_null for row in plan)
    sources = len({row.source_key for row in plan})
    texts = ("key", "source_key", "source_digest", "split")
    lines = [
        "---",
        "tags: [counterfactual, webdataset, cfaug]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        f"  - {{split: {plan.split}, path: cf-{plan.split}-*.tar}}",
        "dataset_info:",
        "  features:",
        "  - {name: __key__, dtype: string}",
        "  - {name: __url__, dtype: string}",
        "  - name: json",
        "    struct:",
        "    - {name: schema, dtype: int64}",
        *(f"    - {{name: {name}, dtype: string}}" for name in texts),
        *_struct("do", intervened, schema),
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
        "  - {name: png, dtype: image}",
        "---",
        "",
        "# Counterfactual images",
        "",
        f"{len(plan)} images in {len(shards)} shards, made by cfaug from {sources} images of the {plan.split} split: "
        f"{len(plan) - nulls} under interventions and {nulls} reconstructions (`do` empty; here its names are null).",
        "They are synthetic: each shows what its source might have looked like under `do`, if the assumptions of the",
        "graph and of the model that made it hold.",
        "",
        f"Shard format {FORMAT}: `<key>.png` and `<key>.json` a sample; `manifest.jsonl` says what is committed.",
        "",
        f"- plan `{plan.digest}` {json.dumps(plan.settings, sort_keys=True)}",
        "",
    ]
    return "\n".join(lines)


def _struct(field: str, names: Iterable[str], schema: Schema) -> list[str]:
    # json.dumps of a text is a YAML double-quoted scalar, whatever the attribute is called
    entries = [f"      - {{name: {json.dumps(name)}, dtype: {_type(schema, name)}}}" for name in names]
    return [f"    - name: {field}", "      struct:", *entries]


def _type(schema: Schema, name: str | None) -> str:
    return "float64" if name is not None and schema[name].kind == "continuous" else "string"
