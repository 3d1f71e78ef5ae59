"""Opening somebody's classifier for ``cfaug audit``: exported programs, weights of a named net, tables of predictions, a run's own.

file                        what it is, and how images come to it
==========================  ==================================================================================================
``.pt2``                    ``torch.export``: float images (B, 3, H, W), normalised
``.pt``, ``.ts``            TorchScript: the same. A pickle is refused unread, because it may run code
``.onnx``                   onnxruntime: the same
``.safetensors``            the state dict of ``architecture``, a classifier of torchvision; or one of a run's ``classifiers/``
``.csv``                    a table: key (source keys and sample keys), and a column of probabilities for each class

The columns of the answers are the classes in the order of ``classes``, or of the data set's values.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cfaug.config import Recipe
from cfaug.data.loading import ImageStream
from cfaug.errors import DataError, UsageError, listed, near, one_line
from cfaug.judge.effects import Floats
from cfaug.stages.attribute_classifiers import feature_store
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.kept_classifiers import about_classifier
from cfaug.train.features import FeatureStore
from cfaug.train.models import NORMALIZATIONS, as_input, build_model
from cfaug.train.validation import outputs

BATCH = 64
EXPORTS = "export it as .pt2 (torch.export), .onnx or TorchScript, or give safetensors with --architecture"


@dataclass(frozen=True)
class Told:
    """What the command line says of a model file.

    Attributes:
        architecture: the net of torchvision whose weights a safetensors file has.
        normalization: what the net expects, a name in NORMALIZATIONS.
        classes: names of its outputs, in their order.
    """

    architecture: str | None = None
    normalization: str = "imagenet"
    classes: tuple[str, ...] | None = None


Asked = Callable[[Sequence[str], ImageStream], Floats]
"""(keys of N images, the images) -> probabilities (N, K), classes in the data set's order."""


class FrozenNet:
    """The frozen net of a recipe, built when it is first needed; all heads on it share the features of what they are asked about."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._recipe, self._inputs = recipe, inputs
        self._known: dict[tuple[str, ...], Tensor] = {}

    @cached_property
    def _store(self) -> FeatureStore:
        return feature_store(self._recipe, self._inputs, None, progress=False)

    @property
    def digest(self) -> str:
        """What its features depend on."""
        return self._store.digest

    def features(self, keys: Sequence[str], images: ImageStream) -> Tensor:
        """(N, D) of the images with these keys."""
        if (which := tuple(keys)) not in self._known:
            with torch.inference_mode():
                parts = [self._store.model.embed(as_input(batch)).float() for batch in images.batches(BATCH)]
            self._known[which] = torch.cat(parts)
        return self._known[which]


def open_audited(path: Path, told: Told, recipe: Recipe, inputs: Inputs, frozen: FrozenNet) -> Asked:
    """A classifier that can be asked about images; ``frozen`` is the net under the heads that the run has kept.

    Raises:
        UsageError: no such file, a file that may run code, an unknown kind, other classes, or images of another size.
    """
    if not path.is_file():
        raise UsageError(f"--model: expected a file, got {path}, which does not exist; correct the path")
    values = list(inputs.schema[inputs.target].categories)
    order = _order(told.classes, values)
    kind = path.suffix.lower()
    if kind == ".csv":
        return _table(path, values)
    if kind == ".safetensors":
        if (about := about_classifier(path)) is not None:
            return _kept(path, about, recipe, inputs, frozen)
        net = _of_architecture(path, told.architecture, len(values))
    elif kind == ".pt2":
        net = _exported(path, inputs)
    elif kind == ".onnx":
        net = _onnx(path, inputs)
    elif kind in (".pt", ".ts", ".pth", ".torchscript"):
        net = _script(path)
    else:
        raise UsageError(
            f"--model: expected .pt2, .onnx, .pt (TorchScript), .safetensors or .csv, got {path.name}; {EXPORTS}"
        )
    if told.normalization not in NORMALIZATIONS:
        raise UsageError(
            f"--normalization: expected one of {', '.join(NORMALIZATIONS)}, got {told.normalization!r}; {near(told.normalization, NORMALIZATIONS)}"
        )
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in NORMALIZATIONS[told.normalization])

    def asked(keys: Sequence[str], images: ImageStream) -> Floats:
        found = []
        for batch in images.batches(BATCH):
            floats = (batch.float() / 255).expand(-1, 3, -1, -1)
            found.append(_said(net, (floats - mean) / std, path, len(values)))
        return _probabilities(torch.cat(found))[:, order]

    return asked


def _order(classes: tuple[str, ...] | None, values: list[str]) -> list[int]:
    """Where each of the data set's values stands among the outputs."""
    if classes is None:
        return list(range(len(values)))
    if sorted(classes) != sorted(values):
        raise UsageError(
            f"--classes: expected the values of the target, {', '.join(values)}, each once, got {', '.join(classes)}; give them in the order of the outputs"
        )
    return [classes.index(value) for value in values]


def _said(net: Callable[[Tensor], Any], batch: Tensor, path: Path, classes: int) -> Tensor:
    try:
        with torch.inference_mode():
            made = net(batch)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(
            f"--model {path.name}: expected a net that takes images ({', '.join(map(str, batch.shape))}), got an error ({one_line(error, 120)}); "
            "export it for this size, with a batch of any length"
        ) from None
    if not isinstance(made, Tensor) or made.ndim != 2 or made.shape != (len(batch), classes):
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(
            f"--model {path.name}: expected answers ({len(batch)}, {classes}), one for each class of the target, got {shape}; export its logits"
        )
    return made.float()


def _probabilities(said: Tensor) -> Floats:
    """Logits, or probabilities already, as probabilities."""
    values = said.double()
    if (values >= 0).all() and ((values.sum(1) - 1).abs() < 1e-3).all():
        return values.numpy()
    return values.softmax(1).numpy()


def _exported(path: Path, inputs: Inputs) -> Callable[[Tensor], Any]:
    try:
        program = torch.export.load(path)
    except Exception as error:  # zipfile, json and torch have each their own
        raise UsageError(
            f"--model {path.name}: expected a program of torch.export, got a file that cannot be read ({one_line(error, 100)}); {EXPORTS}"
        ) from None
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    sizes = [value if isinstance(value, int) else None for value in (shapes[0] if shapes else ())]
    return _in_parts(program.module(), sizes, path, inputs)


def _onnx(path: Path, inputs: Inputs) -> Callable[[Tensor], Any]:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError('--model: ONNX files need the package onnxruntime: pip install "cfaug[onnx]"') from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise UsageError(
            f"--model {path.name}: expected a model of ONNX, got a file that cannot be read ({one_line(error, 100)}); {EXPORTS}"
        ) from None
    given = session.get_inputs()
    if len(given) != 1:
        raise UsageError(
            f"--model {path.name}: expected one input, images (B, 3, H, W), got {listed([one.name for one in given])}; export it anew"
        )
    sizes = [value if isinstance(value, int) else None for value in given[0].shape]
    return _in_parts(
        lambda batch: torch.from_numpy(session.run(None, {given[0].name: batch.numpy()})[0]), sizes, path, inputs
    )


def _in_parts(
    net: Callable[[Tensor], Any], sizes: Sequence[int | None], path: Path, inputs: Inputs
) -> Callable[[Tensor], Any]:
    """``net``, which may have been exported for batches of one length; UsageError where it takes images of another size."""
    height, width = inputs.train.image(0).shape[:2]
    if len(sizes) == 4 and any(fixed not in (None, own) for fixed, own in zip(sizes[2:], (height, width))):
        raise UsageError(
            f"--model {path.name}: expected a net for the run's images, {width}x{height}, got one for {sizes[3]}x{sizes[2]}; export it for this size, "
            f"or run the recipe with data.size: [{sizes[2]}, {sizes[3]}]"
        )
    part = sizes[0] if sizes else None

    def call(batch: Tensor) -> Any:
        if part is None:
            return net(batch)
        whole = torch.cat([batch, batch[-1:].expand(-len(batch) % part, -1, -1, -1)])
        return torch.cat([net(some) for some in torch.split(whole, part)])[: len(batch)]

    return call


def _script(path: Path) -> Callable[[Tensor], Any]:
    try:
        with zipfile.ZipFile(path) as content:
            scripted = any("/code/" in name for name in content.namelist())
    except (OSError, zipfile.BadZipFile):
        scripted = False
    if not scripted:
        raise UsageError(f"--model: {path.name} is a pickle, which may run code and is not read; {EXPORTS}")
    try:
        net: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UsageError(
            f"--model {path.name}: expected TorchScript, got a file that cannot be read ({one_line(error, 100)}); {EXPORTS}"
        ) from None
    return net.eval()


def _of_architecture(path: Path, architecture: str | None, classes: int) -> Callable[[Tensor], Any]:
    import torchvision
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if architecture is None:
        raise UsageError(
            f"--model {path.name} has weights alone: expected --architecture, a classifier of torchvision; write --architecture resnet18"
        )
    names = torchvision.models.list_models(module=torchvision.models)
    if architecture not in names:
        raise UsageError(
            f"--architecture: expected a classifier of torchvision.models, got {architecture!r}; {near(architecture, names)}"
        )
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"--model {path.name}: expected safetensors, got a file that cannot be read ({one_line(error, 100)}); save the state dict again"
        ) from None
    net: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=classes)
    own = net.state_dict()
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    last = [name for name in own if name.endswith(".weight")][-1]
    if last in weights and weights[last].shape[0] != classes:
        raise UsageError(
            f"--model {path.name}: expected {classes} classes, the values of the target, got a net of {weights[last].shape[0]}; train it on this target"
        )
    unlike = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    if unlike or set(weights) - set(own):
        wrong = unlike or sorted(set(weights) - set(own))
        raise UsageError(
            f"--model {path.name}: expected weights of {architecture}, got a file that differs in {len(wrong)} tensors ({listed(wrong, 2)}); correct --architecture"
        )
    net.load_state_dict(weights)
    return net.eval()


def _kept(path: Path, about: dict[str, Any], recipe: Recipe, inputs: Inputs, frozen: FrozenNet) -> Asked:
    """A classifier that a run has kept; its classes are those of its recipe."""
    from safetensors.torch import load_file

    values = list(inputs.schema[inputs.target].categories)
    if about["classes"] != values:
        raise UsageError(
            f"--model {path.name}: expected the classes {', '.join(values)}, got {', '.join(about['classes'])}; audit it in a run of its own data"
        )
    tensors = load_file(path)
    if about["backbone"] is not None:
        if frozen.digest != about["backbone"]:
            raise UsageError(
                f"--model {path.name} is the last layer on another net than train.weights has now; restore the file, or train again"
            )
        weight, bias = tensors["weight"], tensors["bias"]
        return lambda keys, images: (frozen.features(keys, images) @ weight.T + bias).double().softmax(1).numpy()
    (height, width, channels), config = inputs.train.image(0).shape, recipe.train
    net = build_model(config.model, channels, (height, width), len(values), 0, config.weights, config.normalization)
    net.load_state_dict(tensors)
    return lambda keys, images: outputs(net, net, images, BATCH).double().softmax(1).numpy()


def _table(path: Path, values: list[str]) -> Asked:
    try:
        table = pd.read_csv(path, dtype={"key": str})
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--model {path.name}: expected a table of predictions, got a file that cannot be read ({one_line(error, 100)}); write it as CSV"
        ) from None
    if absent := [name for name in ("key", *values) if name not in table]:
        raise UsageError(
            f"--model {path.name}: expected the columns key, {', '.join(values)} (probabilities), got {listed(list(map(str, table.columns)))}; add {absent[0]}"
        )
    known = table.drop_duplicates("key").set_index("key")[values]

    def asked(keys: Sequence[str], images: ImageStream) -> Floats:
        if lacking := [key for key in keys if key not in known.index]:
            raise DataError(
                f"--model {path.name}: expected a row for every image that is asked about, got none for {len(lacking)} ({listed(lacking, 2)}); add them"
            )
        return np.asarray(known.loc[list(keys)].to_numpy(dtype=np.float64))

    return asked
