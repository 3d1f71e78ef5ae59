"""Which attribute lives in which layer, as a recipe says it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cfaug.data import Schema
from cfaug.errors import UsageError, near

LAYERS = ("background", "foreground")


def check_layers(layers: Mapping[str, Sequence[str]], parents: Collection[str], schema: Schema) -> dict[str, str]:
    """Attribute -> its layer. UsageError for an unknown layer, and an attribute in two layers, in none, or not of categories."""
    found: dict[str, str] = {}
    for layer, names in layers.items():
        if layer not in LAYERS:
            raise UsageError(f"decoder.layers: expected {' and '.join(LAYERS)}, got {layer!r}; {near(layer, LAYERS)}")
        for name in names:
            if name not in parents:
                raise UsageError(
                    f"decoder.layers.{layer}: expected parents of the image, got {name!r}; {near(name, list(parents))}"
                )
            if name in found:
                raise UsageError(f"decoder.layers: {name!r} is in two layers; leave it in one")
            if name == schema.target:
                raise UsageError(
                    f"decoder.layers: {name!r} is the target, which no intervention changes; remove it from the layers"
                )
            if schema[name].kind == "continuous":
                raise UsageError(
                    f"decoder.layers: expected attributes of categories, got {name!r}, which is continuous: no two images share a value; "
                    "bin its column"
                )
            found[name] = layer
    absent = [name for name in parents if name not in found and name != schema.target]
    if absent:
        whole = {layer: list(names) for layer, names in layers.items()}
        whole["background"] = [*whole.get("background", []), *absent]
        written = ", ".join(f"{layer}: [{', '.join(names)}]" for layer, names in whole.items())
        raise UsageError(f"decoder.layers: {absent[0]!r} is in no layer; write for example layers: {{{written}}}")
    return found
