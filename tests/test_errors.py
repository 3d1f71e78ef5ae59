"""How a value or an error is shown in a message: on one line, and short."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfaug.errors import StorageError, described, lacks_memory, listed, near, one_line, shown


@given(st.text(max_size=200), st.integers(10, 80))
def test_what_is_shown_is_one_short_line(text: str, most: int) -> None:
    for line in (one_line(ValueError(text), most), shown(text, most), one_line(text, most)):
        assert len(line) <= most
        assert "\n" not in line


def test_an_error_without_words_has_its_kind() -> None:
    assert one_line(KeyError()) == "KeyError"
    assert one_line("a\n  b") == "a b"


def test_values_are_described_by_type_dtype_and_shape() -> None:
    assert described(np.zeros((2, 3), np.float32)) == "ndarray float32 (2, 3)"
    assert described([1]) == "list"


def test_names_are_listed_up_to_a_number() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcde") == "a, b, c and 2 more"


def test_near_names_come_before_all_names() -> None:
    assert near("digist", ["digits", "folder"]) == "did you mean digits?"
    assert near("x", ["digits", "folder"]) == "known: digits, folder"
    assert near("x", []) == "known: none"


def test_a_storage_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("full", full=True)))
    assert (str(error), error.full, error.transient) == ("full", True, False)


def test_memory_is_lacking_in_the_words_of_any_library() -> None:
    assert lacks_memory(MemoryError())
    assert lacks_memory(RuntimeError("CUDA out of memory"))
    assert not lacks_memory(ValueError("out of memory"))
