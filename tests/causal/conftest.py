"""Short fits of splines in this room: how well one has learned matters only to the tests that ask for ``full_fits``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cfaug.causal.mechanisms import flows

FULL = flows.STEPS


@pytest.fixture(autouse=True, scope="module")
def _short_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows, "STEPS", 60)
        yield


@pytest.fixture
def full_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as a user's fit takes."""
    monkeypatch.setattr(flows, "STEPS", FULL)
