from __future__ import annotations

import pickle

import numpy as np
import pytest

from cfaug.data import ArrayDataset, AttributeDataset, can_unconfound, open_source


def test_array_datasets_pickle_and_are_attribute_datasets(tiny_digits: ArrayDataset) -> None:
    again = pickle.loads(pickle.dumps(tiny_digits))
    assert again.table.equals(tiny_digits.table)
    assert isinstance(again, AttributeDataset)
    assert again.mask(0) is None
    with pytest.raises(IndexError):
        tiny_digits[64]
    assert len(list(tiny_digits)) == 64


def test_a_source_may_select_among_its_attributes() -> None:
    assert can_unconfound("digits")
    assert not can_unconfound("folder")
    one = open_source("digits", spurious=["background"])
    assert (one.schema.target, one.schema.spurious) == ("digit", ("background",))
    assert np.array_equal(one.image(0), open_source("digits").image(0))
