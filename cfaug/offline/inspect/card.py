"""The dataset card of a directory of shards: what is in it, and the schema for Hugging Face ``datasets``.

The schema is written down because ``datasets`` otherwise infers it from the first five samples and drops, without a
word, every name of ``do`` that only occurs later. ``load_dataset(DIR)`` uses the card; ``load_dataset("webdataset",
data_files=...)`` does not see it and relies on the plan's leading real rows.

The card depends on plan, schema and one manifest row, so every engine writes the same bytes. It states no licence, because the
licence of the source images decides, and only the user knows it.
"""

from __future__ import annotations

import json
from pathlib import Path

from cfaug.data import Schema
from cfaug.offline.format import FORMAT, MANIFEST, ManifestRow, shard_pattern
from cfaug.offline.plan import Plan

# the size categories of https://huggingface.co/docs/hub/datasets-cards
SIZES = {
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M", 10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}  # fmt: skip


def card(
    plan: Plan,
    schema: Schema,
    padded: bool = False,
    image: str = "png",
    example: ManifestRow | None = None,
    imported: bool = False,
) -> str:
    """The text of ``README.md``: a YAML header for ``datasets`` and a paragraph for people (``card.md.jinja``).

    Args:
        padded: every record says in ``quality`` how much its source was padded for the model.
        image: the image field, ``png`` or ``webp``.
        example: any row of the manifest, for the model's digest and the versions; they are the same in all rows.
        imported: every record says that its image was edited elsewhere.
    """
    import jinja2

    def type_of(name: str | None) -> str:
        return "float64" if name is not None and schema[name].kind == "continuous" else "string"

    intervened = [name for name in schema.names if name in plan.summary.names]
    environment = {} if example is None else example.environment
    texts = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    # the JSON of any attribute name is a YAML double-quoted scalar
    texts.filters["json"] = json.dumps
    template = texts.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        plan=plan, schema=schema, padded=padded, imported=imported, image=image, example=example, of=plan.summary, type=type_of,
        title=f"Counterfactual images ({plan.split})", pattern=shard_pattern(plan.split), format=FORMAT, manifest=MANIFEST,
        size=next((name for most, name in SIZES.items() if len(plan) < most), "1B<n<10B"),
        structs={"do": intervened or schema.names, "attributes": schema.names, "factual": schema.names},
        settings=json.dumps(plan.settings, sort_keys=True),
        environment=environment,
        environment_text=", ".join(f"{name} {value}" for name, value in sorted(environment.items())),
    )  # fmt: skip
