"""A pipeline on disk: what is refused before a weight is read, which sizes it takes, its digest, and loading it.

Weights are safetensors and nothing else, no code that lies beside them is run, and nothing is downloaded. A model keeps a reference
and the sha256 of every file, never a copy; the sums are computed once and believed while a file's size and time of change stay.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cfaug.data.files import expand
from cfaug.data.images import Pixels, as_rgb
from cfaug.decode.editors.backends import CLASSES, INTO, Traits
from cfaug.editor_config import EditorConfig
from cfaug.errors import UsageError, listed, near, one_line

PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".h5")
KEPT = (".json", ".safetensors", ".txt", ".model", ".jinja")
Files = dict[str, tuple[int, int, str]]
"""File below the directory -> (bytes, time of change in ns, sha256)."""


def find(config: EditorConfig) -> Path:
    """The directory of the pipeline.

    Raises:
        UsageError: none is named, it is not there, or a hub id that has no pinned revision or is not in the local cache.
    """
    if not config.pipeline:
        raise UsageError(
            "decoder.editor.pipeline: expected a directory that a pipeline of diffusers was saved in, got none; name one"
        )
    place = expand(config.pipeline)
    if place.is_dir():
        return place
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.pipeline):
        raise UsageError(
            f"decoder.editor.pipeline: expected a directory, got {config.pipeline!r}, which does not exist; correct the path"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
        raise UsageError(
            f"decoder.editor.revision: expected the 40 digits of a commit for {config.pipeline}, got {config.revision!r}; a name can change its "
            "weights overnight"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.pipeline, revision=config.revision, local_files_only=True))
    except Exception:  # several of its own
        raise UsageError(
            f"decoder.editor.pipeline: expected {config.pipeline} in the local cache, got nothing of that revision; download it once where there "
            f"is a network: hf download {config.pipeline} --revision {config.revision}"
        ) from None


def class_of(place: Path, config: EditorConfig) -> str:
    """The pipeline class to load; nothing but ``model_index.json`` is read.

    Raises:
        UsageError: no pipeline, one that cannot edit or has not the backend that is asked for, pickled weights, code.
    """
    try:
        found = str(json.loads((place / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"decoder.editor.pipeline: expected a pipeline of diffusers in {place.name}, got no model_index.json that names one "
            f"({one_line(error, 80)}); save it there with save_pretrained"
        ) from None
    if found not in CLASSES:
        raise UsageError(
            f"decoder.editor.pipeline: expected a class that edits images, got {found}; {near(found, CLASSES)}; known are {listed(CLASSES, 20)}"
        )
    files = [path.relative_to(place) for path in sorted(place.rglob("*")) if path.is_file()]
    if code := next((path for path in files if path.suffix == ".py"), None):
        raise UsageError(
            f"decoder.editor.pipeline: expected no code in {place.name}, got {code}; it would not be run: remove it"
        )
    if bad := next((p for p in files if p.suffix in PICKLED), None):
        raise UsageError(
            f"decoder.editor.pipeline: expected safetensors, got {bad}, whose loading can run code; load it where you trust it, and save it again "
            "with save_pretrained(..., safe_serialization=True)"
        )
    if config.backend in (None, CLASSES[found].backend):
        return found
    other = INTO.get((found, str(config.backend)))
    if other is None:
        able = [CLASSES[found].backend, *(backend for name, backend in INTO if name == found)]
        raise UsageError(
            f"decoder.editor.backend: expected {listed(able, 4)} of a {found}, got {config.backend}; correct it, or remove the line"
        )
    return other


def scheduler_of(place: Path) -> str:
    """The class of the pipeline's scheduler, by ``model_index.json``."""
    return str(json.loads((place / "model_index.json").read_text(encoding="utf-8")).get("scheduler", ["", ""])[1])


def multiple_of(place: Path, traits: Traits) -> int:
    """What heights and widths must be multiples of, by the autoencoder's description."""
    try:
        vae = json.loads((place / "vae" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"decoder.editor.pipeline: expected vae/config.json in {place.name}, got {one_line(error, 80)}"
        ) from None
    halvings = (
        len(vae["temperal_downsample"])
        if "temperal_downsample" in vae
        else len(vae.get("block_out_channels", [1, 1, 1, 1])) - 1
    )
    return math.lcm(2**halvings * (2 if traits.packed else 1), traits.multiple)


def size_of(size: Sequence[int], config: EditorConfig, multiple: int, least: int = 1) -> tuple[int, int]:
    """(height, width) at which the pipeline works on images of a size (height, width).

    Raises:
        UsageError: the working size is none that it takes, and no other is asked for.
    """
    height, width = size
    scale = 1.0 if config.size is None else config.size / min(height, width)
    found = (
        max(1, round(height * scale / multiple)) * multiple,
        max(1, round(width * scale / multiple)) * multiple,
    )
    if (config.size is None and found != (height, width)) or min(found) < least:
        good = max(min(found), -(-least // multiple) * multiple)
        raise UsageError(
            f"decoder.editor.size: expected sides that are multiples of {multiple} and at least {least}, got {width}x{height} px; set data.size, "
            f"or decoder.editor.size: {good}, and images are resized on their way in and out"
        )
    return found


def resized(image: Pixels, size: tuple[int, int]) -> Image.Image:
    """An image as RGB, in (height, width)."""
    picture = Image.fromarray(as_rgb(image))
    return picture if picture.size == size[::-1] else picture.resize(size[::-1], Image.Resampling.LANCZOS)


def hashed(place: Path, known: Mapping[str, Any], pattern: str = "**/*") -> Files:
    """The sums of a model's files; those ``known`` whose size and time are the same are not computed again."""
    found: Files = {}
    for path in sorted(place.glob(pattern)):
        if path.suffix not in KEPT or not path.is_file():
            continue
        name, stat = path.relative_to(place).as_posix(), path.stat()
        size, changed, digest = known.get(name, (-1, -1, ""))
        if (size, changed) != (stat.st_size, stat.st_mtime_ns):
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[name] = (stat.st_size, stat.st_mtime_ns, digest)
    return found


def sums(files: Files) -> dict[str, str]:
    """File -> sha256, without what this machine knows of it."""
    return {name: digest for name, (_, _, digest) in sorted(files.items())}


def check_length(folder: Path, prompt: str) -> None:
    """UsageError where the tokenizer in ``folder`` would cut the prompt, with what would be lost; a pipeline may have none."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        return
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    most = int(tokenizer.model_max_length)
    codes = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
    if len(codes) > most:
        kept = tokenizer.decode(codes[: most - 1], skip_special_tokens=True)
        lost = tokenizer.decode(codes[most - 1 :], skip_special_tokens=True)
        raise UsageError(
            f"decoder.editor: expected prompts of at most {most} tokens, got one of {len(codes)}: {lost!r} would be cut after "
            f"{kept[-30:]!r}; shorten the template or the words"
        )


def load(place: Path, name: str, config: EditorConfig, device: str) -> Any:
    """The pipeline, ready to be called.

    Raises:
        UsageError: weights that do not fit, a scheduler that does not, or an option that the pipeline's call has not.
    """
    import diffusers
    from diffusers.utils import logging
    from transformers.utils import logging as logging_of_texts

    logging.set_verbosity_error()  # its pipelines warn at every call of what cannot be changed here
    for each in (logging, logging_of_texts):
        each.disable_progress_bar()
    own = getattr(diffusers, name)
    try:
        pipe = own.from_pretrained(
            place, local_files_only=True, use_safetensors=True, dtype=getattr(torch, config.dtype),
            **({"safety_checker": None} if "safety_checker" in inspect.signature(own).parameters else {}),
        )  # fmt: skip
    except ImportError as error:
        raise UsageError(f'decoder.kind pretrained: {one_line(error, 160)}; pip install "cfaug[editors]"') from None
    except Exception as error:  # diffusers, transformers and safetensors each raise their own
        raise UsageError(
            f"decoder.editor.pipeline: expected a {name} in {place.name}, got something else ({one_line(error, 160)}); save it again with "
            "save_pretrained"
        ) from None
    if config.scheduler is not None:
        able = {one.__name__: one for one in pipe.scheduler.compatibles}
        if config.scheduler not in able:
            raise UsageError(
                f"decoder.editor.scheduler: expected one that suits {name}, got {config.scheduler!r}; {near(config.scheduler, able)}"
            )
        pipe.scheduler = able[config.scheduler].from_config(pipe.scheduler.config)
    taken = inspect.signature(pipe.__call__).parameters
    if stray := next((option for option in config.options if option not in taken), None):
        raise UsageError(f"decoder.editor.options: expected arguments of {name}, got {stray!r}; {near(stray, taken)}")
    pipe.set_progress_bar_config(disable=True)
    if config.slicing:
        pipe.enable_attention_slicing()
        pipe.vae.enable_slicing()
    if config.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif config.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe
