"""The mark of a generated image: what other readers find, that it moves no pixel, and that nothing else passes as one."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import hostile
from PIL import Image

from cfaug.data.source_types import SOURCE_TYPES, TRAINED, strongest
from cfaug.decode.mechanism import Capabilities
from cfaug.errors import ShardError, UsageError
from cfaug.offline.decoders import decode_image
from cfaug.offline.environment import environment_of
from cfaug.offline.format import IMAGES, Sample
from cfaug.offline.marks import mark_of, marked, unmarked
from cfaug.offline.write_shard import encode_image

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
EXTENSION = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
URI = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def sample(source_type: str = TRAINED, side: int = 9, channels: int = 3) -> Sample:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 2, channels), dtype=np.uint8)
    return Sample("k", pixels, {}, source_type=source_type)


@pytest.mark.parametrize("image", list(IMAGES))
@pytest.mark.parametrize("source_type", SOURCE_TYPES)
def test_pillow_finds_the_type_in_the_file_and_the_pixels_are_the_same(image: str, source_type: str) -> None:
    for side in (1, 8, 9, 64):
        made = sample(source_type, side)
        data = encode_image(made, image)
        assert mark_of(data, IMAGES[image]) == source_type
        with Image.open(io.BytesIO(data)) as picture:
            (described,) = ElementTree.fromstring(picture.info["xmp"]).iter(f"{RDF}Description")
            assert described.get(f"{EXTENSION}DigitalSourceType") == URI + source_type
            assert np.array_equal(np.asarray(picture), made.image)
        for vouched in (True, False):
            assert np.array_equal(decode_image(data, "here", IMAGES[image], vouched), made.image)


def test_a_grey_png_is_marked_too() -> None:
    data = encode_image(sample(channels=1), "png")
    assert mark_of(data, "png") == TRAINED
    assert decode_image(data, "here").shape == (9, 11, 1)


@pytest.mark.parametrize("image", list(IMAGES))
def test_a_mark_comes_off_byte_by_byte(image: str) -> None:
    field = IMAGES[image]
    data = encode_image(sample(), image)
    plain = unmarked(data, field)
    assert mark_of(plain, field) is None
    assert len(plain) < len(data)
    assert marked(plain, field, TRAINED) == data
    assert np.array_equal(decode_image(plain, "here", field, vouched=False), sample().image)  # as older shards have it


@pytest.mark.parametrize("image", ["png", "webp"])
def test_no_bit_of_a_mark_can_be_another(image: str) -> None:
    """Nothing but the closed list is taken out, so what stands in its place is refused before a decoder sees it."""
    field = IMAGES[image]
    data = encode_image(sample(), image)
    plain = unmarked(data, field)
    places = (
        range(33, 33 + len(data) - len(plain))
        if field == "png"
        else [*range(12, 30), *range(len(plain) + 18, len(data))]
    )
    for at in itertools.islice(places, 0, None, 3):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(ShardError, match="its image is not a readable"):
            decode_image(bytes(broken), "here", field)
    with pytest.raises(ShardError):
        decode_image(marked(data, field, TRAINED), "here", field)  # twice


def test_other_text_is_no_mark() -> None:
    text = hostile.chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + b"<x/>")
    with pytest.raises(ShardError, match="only IHDR, IDAT, IEND"):
        decode_image(hostile.png(text), "here")
    huge = io.BytesIO()
    Image.new("RGB", (8, 8)).save(huge, "WEBP", lossless=True, xmp=b"<x/>")
    with pytest.raises(ShardError, match="only simple lossless WebP"):
        decode_image(huge.getvalue(), "here", "webp")


def test_the_strongest_of_several_types() -> None:
    assert strongest(["algorithmicallyEnhanced", "compositeCapture"]) == "compositeCapture"
    assert strongest(SOURCE_TYPES) == TRAINED


def test_a_model_that_says_nothing_is_taken_for_a_trained_one() -> None:
    assert environment_of(object(), 4)["source_type"] == TRAINED
    layers = SimpleNamespace(capabilities=Capabilities("exact", source_type="compositeCapture"))
    assert environment_of(layers, 4)["source_type"] == "compositeCapture"
    other = SimpleNamespace(capabilities=Capabilities("exact", source_type="a photograph"))
    with pytest.raises(UsageError, match="expected a digital source type of IPTC, got 'a photograph'"):
        environment_of(other, 4)
