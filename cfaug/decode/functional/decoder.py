"""An image mechanism of closed-form functions: every value of an attribute is shown by functions of the recipe.

    abduct:   n = (x, seed)
    predict:  x' = put(a', undo(a, x))        a: the factual value, a': the counterfactual one, parameters drawn from the seed

An intervention to the value that the image has is a sample too: what shows the value is taken away and put in again elsewhere, and
where the value shows nothing, the traces that taking away leaves are put in (a decoy). So traces do not say "is counterfactual".
Only do() leaves the image as it is. Of a value that cannot be undone no source may be taken; the plan is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema
from cfaug.data.images import Pixels
from cfaug.data.micro_batch import Sources
from cfaug.decode import save_decoder
from cfaug.decode.functional.functions import Function, MaskRemoved, Stamped, functions_of
from cfaug.decode.functional.stamps import Place, Stamp
from cfaug.decode.mechanism import Capabilities, differing
from cfaug.decode.pixel_mechanism import PixelMechanism, as_images
from cfaug.errors import UsageError, near

_DRAWN = 0x46554E  # sets these draws apart from others with the row's seed


@dataclass(frozen=True)
class FunctionNoise:
    """What abduction returns: uint8 images (B, H, W, C), masks (B, H, W) or None, seeds and factual values."""

    images: Pixels
    masks: Pixels | None
    seeds: Sequence[int]
    table: pd.DataFrame
    device: torch.device | str = "cpu"


class FunctionalDecoder(PixelMechanism):
    """Functions for the values of attributes.

    Args:
        schema: the attributes.
        parents: the image's parents in the causal graph.
        config: ``config.functions`` maps attribute -> value -> functions (:mod:`cfaug.decode.functional.functions`).
        functions: in place of ``config.functions``, and may hold Python functions (image, Generator) -> image as well; a decoder with
            such functions cannot be saved.

    Raises:
        UsageError: an attribute that is no parent, a value without functions, or settings that do not fit.
    """

    kind = "functional"

    def __init__(
        self,
        schema: Schema,
        parents: Collection[str],
        config: DecoderConfig | None = None,
        functions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.config = config or DecoderConfig(kind="functional")
        super().__init__(schema, parents)
        self._given: Mapping[str, Mapping[str, Any]] = self.config.functions if functions is None else functions
        self.functions = _checked(self._given, self.parents, schema)

    @property
    def capabilities(self) -> Capabilities:
        """Masks only where a value is removed by them; null interventions are exact."""
        removes = any(isinstance(f, MaskRemoved) for own in self.functions.values() for fs in own.values() for f in fs)
        return Capabilities(
            "exact",
            needs_masks=removes,
            redraws_own_value=True,
            stochastic=True,
            source_type="algorithmicallyEnhanced",
        )

    def fit(self, dataset: AttributeDataset, seed: int = 0, progress: bool = True) -> FunctionalDecoder:
        """Nothing is learned but the statistics of the attributes; a value that training images have must have functions."""
        self._fit_schema(dataset)
        self.functions = _checked(self._given, self.parents, self.schema)
        table = self.schema.canonical(dataset.table)
        for name, value, _, stamp in self._stamps():
            if stamp.taken:
                rows = np.flatnonzero((table[name] == value).to_numpy())
                rows = np.sort(np.random.default_rng([seed, _DRAWN]).permutation(rows)[: stamp.taken])
                stamp.learn(dataset.image(int(i)) for i in rows)
        return self

    def _stamps(self) -> Iterator[tuple[str, str, str, Stamp]]:
        """(attribute, value, a name for its arrays, stamp) of every stamp."""
        for name, values in self.functions.items():
            for value, functions in values.items():
                for i, function in enumerate(functions):
                    if isinstance(function, Stamped):
                        yield name, value, f"{name}.{value}.{i}", function.stamp

    @property
    def boxes(self) -> dict[str, tuple[tuple[float, float, float, float], ...]]:
        """Attribute -> the boxes that its stamps are put in, as shares of the image; without those that show in something else too."""
        found = {}
        for name, values in self.functions.items():
            functions = [function for own in values.values() for function in own]
            if functions and all(isinstance(function, Stamped) for function in functions):
                found[name] = tuple(box for one in functions if isinstance(one, Stamped) for box in one.stamp.places)
        return found

    def check_plan(self, names: Iterable[str], factual: pd.DataFrame) -> None:
        """UsageError where an intervention on ``names`` would have to undo what cannot be undone in some source."""
        for name in set(names) & set(self.functions):
            for value, functions in self.functions[name].items():
                fixed = [f for f in functions if not f.invertible]
                if fixed and (factual[name] == value).any():
                    other = next((v for v in self.functions[name] if v != value), "another value")
                    raise UsageError(
                        f"decoder.functions.{name}.{value}: expected functions that can be undone, because sources with {name}={value} would "
                        f"become {name}={other}; plan only the other direction, or take a stamp, a frame, or a layered decoder"
                    )

    def abduct(self, sources: Sources) -> FunctionNoise:
        """Keep the images."""
        return FunctionNoise(sources.pixels, sources.mask_pixels, sources.seeds, sources.table, sources.images.device)

    def predict(
        self,
        noise: FunctionNoise,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """The images with the affected attributes shown anew; of ``affected`` None, those that differ.

        Raises:
            UsageError: an affected attribute without functions, a value that cannot be undone, a strength.
        """
        if strength not in (None, 1):
            raise UsageError(f"expected no strength for functions, got {strength}; give ranges in decoder.functions")
        if affected is None:
            affected = differing(noise.table, attributes, self.parents)
        made = [self._shown(noise, i, attributes, names) for i, names in enumerate(affected)]
        return as_images(made, noise.device)

    def _shown(self, noise: FunctionNoise, i: int, attributes: pd.DataFrame, names: Collection[str]) -> Pixels:
        image: Pixels = noise.images[i]
        mask = None if noise.masks is None else noise.masks[i]
        if unknown := sorted(set(names) - set(self.functions)):
            raise UsageError(
                f"expected an intervention on {', '.join(self.functions)}, got one that changes {unknown[0]}; say in decoder.functions what it does"
            )
        rng = np.random.default_rng([noise.seeds[i], _DRAWN])
        for name in (name for name in self.functions if name in names):  # in the schema's order
            before, after = noise.table[name].iloc[i], attributes[name].iloc[i]
            own = self.functions[name]
            undone = own.get(before, ())
            for function in reversed(undone):
                if not function.invertible:
                    raise UsageError(
                        f"decoder.functions.{name}.{before}: cannot be undone in a source; plan only the other direction"
                    )
                image = function.undo(image, mask, rng)
            if not undone:  # what taking another value away would leave
                traces = [f for value, functions in own.items() if value != before for f in functions if f.invertible]
                if traces:
                    image = traces[int(rng.integers(len(traces)))].decoy(image, rng)
            for function in own.get(after, ()):
                image = function.put(image, rng)
        return image

    # -- disk ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) over the description and the stamps' files."""
        return save_decoder.digest(self._description(), self._weights())

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.json``, and the stamps' pictures in ``decoder.safetensors``. UsageError with Python functions."""
        if not _is_plain(self._given):
            raise UsageError(
                "expected functions by name, got a Python function, which cannot be saved; use the model in this process"
            )
        save_decoder.save(directory, self._description(), self._weights(), self.report)

    def _description(self) -> dict[str, Any]:
        given = json.loads(json.dumps(self._given, default=_named))
        return {
            "format": save_decoder.FORMAT, "kind": self.kind, "functions": given, "schema": self.schema.to_json(),
            "parents": list(self.parents),
        }  # fmt: skip

    def _weights(self) -> dict[str, torch.Tensor]:
        found = {}
        for _, _, key, stamp in self._stamps():
            if stamp.image is not None:
                found[key] = torch.from_numpy(np.ascontiguousarray(stamp.picture))
            for k, example in enumerate(stamp.examples):
                found[f"{key}.taken.{k:04d}.{example.top}.{example.left}"] = torch.from_numpy(
                    np.ascontiguousarray(example.alpha)
                )
        return found

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> FunctionalDecoder:
        """Read what :meth:`save` wrote. ShardError for damaged files, UsageError for those of a different version."""
        content, weights, _ = save_decoder.load(directory)
        config = DecoderConfig(kind="functional", functions=content["functions"])
        decoder = cls(Schema.from_json(content["schema"]), content["parents"], config)
        for _, _, key, stamp in decoder._stamps():
            if stamp.image is not None:
                stamp.keep(weights[key].numpy())
            taken = sorted(name for name in weights if name.startswith(f"{key}.taken."))
            examples = []
            for name in taken:
                alpha, (top, left) = weights[name].numpy(), map(int, name.split(".")[-2:])
                examples.append(Place(alpha, stamp.flat(alpha), top, left))
            stamp.keep_examples(examples)
        return decoder


def _checked(
    given: Mapping[str, Mapping[str, Any]],
    parents: Collection[str],
    schema: Schema,
) -> dict[str, dict[str, tuple[Function, ...]]]:
    found: dict[str, dict[str, tuple[Function, ...]]] = {}
    for name in (*(n for n in schema.names if n in given), *(n for n in given if n not in schema.names)):
        values = given[name]
        if name not in parents:
            raise UsageError(
                f"decoder.functions: expected parents of the image, got {name!r}; {near(name, list(parents))}"
            )
        if name == schema.target:
            raise UsageError(f"decoder.functions: {name!r} is the target, which no intervention changes; remove it")
        if schema[name].kind == "continuous":
            raise UsageError(
                f"decoder.functions: expected attributes of categories, got {name!r}, which is continuous; bin its column"
            )
        if not isinstance(values, Mapping):
            raise UsageError(
                f"decoder.functions.{name}: expected a group of values, got {values!r}; indent them below it"
            )
        known = schema[name].categories if schema[name].values else tuple(map(str, values))
        for value in values:
            if str(value) not in known:
                raise UsageError(
                    f"decoder.functions.{name}: expected values of {name}, got {value!r}; {near(str(value), known)}"
                )
        for value in known:
            if value not in {str(v) for v in values}:
                raise UsageError(
                    f"decoder.functions.{name}: expected functions for every value, got none for {value!r}; write {value}: [] where nothing shows it"
                )
        found[name] = {}
        for value, functions in values.items():
            made = functions_of(functions, f"decoder.functions.{name}.{value}")
            found[name][str(value)] = made
    absent = [name for name in parents if name not in found and name != schema.target]
    if absent:
        raise UsageError(
            f"decoder.functions: expected functions for {absent[0]!r}, a parent of the image, got none; say what its values do"
        )
    return found


def _named(value: Any) -> str:
    return f"function {getattr(value, '__qualname__', value)}"


def _is_plain(given: Any) -> bool:
    if isinstance(given, Mapping):
        return all(map(_is_plain, given.values()))
    return not callable(given)
