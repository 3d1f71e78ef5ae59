"""A mechanism that the user writes down: two functions that are inverse to each other.

    v = predict(u, parents),   u = abduct(v, parents)            predict(abduct(v, parents), parents) == v

``fit`` learns nothing; it refuses functions that do not give the table's values back. Code is not saved: a saved model knows
only the mechanism's name, parents and version, and needs the same object when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.conditional import one_seed_per_row
from cfaug.causal.row_random import Array, Seeds, gumbels, normals, uniforms
from cfaug.data.table import spread
from cfaug.errors import DataError, UsageError, lacks_memory, one_line, shown

NOISES: Mapping[str, Callable[[Seeds, int], Array]] = {"normal": normals, "uniform": uniforms, "gumbel": gumbels}
TOLERANCE = 1e-5  # of a standard deviation


class FunctionMechanism:
    """A node that follows from its parents by functions that the user gives.

    Args:
        name, parents: the node, and its parents as the graph has them.
        predict: (noise (B, K), table of parents) -> values (B,): category texts, or numbers in the attribute's unit.
        abduct: (values as a Series, table of parents) -> noise (B, K); deterministic, each row by itself.
        noise: the distribution of each column of the noise: "normal" (standard), "uniform" on (0, 1) or "gumbel".
        width: K.
        log_prob: (values, table of parents) -> log p(value | parents) (B,); needed only where somebody calls ``log_prob``.
        version: a text that stands for the code in digests; change it whenever the functions change.
        monotone: whether the value strictly increases in the noise; this is not checked, and needs ``width`` 1.

    Raises UsageError for an unknown noise, a width below 1, an empty version or something that cannot be called.
    """

    kind = "function"
    parameters = 0

    def __init__(
        self,
        name: str,
        parents: Sequence[str] = (),
        *,
        predict: Callable[[Array, pd.DataFrame], Any],
        abduct: Callable[[pd.Series, pd.DataFrame], Any],
        version: str,
        noise: str = "normal",
        width: int = 1,
        log_prob: Callable[[pd.Series, pd.DataFrame], Any] | None = None,
        monotone: bool = False,
    ) -> None:
        wrong: str | None = None
        if noise not in NOISES:
            wrong = f"a noise of {', '.join(NOISES)}, got {noise!r}"
        elif isinstance(width, bool) or not isinstance(width, int) or width < 1:
            wrong = f"a width from 1 up, got {width!r}"
        elif not isinstance(version, str) or not version:
            wrong = f'a version such as "1", got {version!r}'
        elif monotone and width != 1:
            wrong = f"width=1 with monotone=True, got width={width}"
        for what, function in (("predict", predict), ("abduct", abduct), ("log_prob", log_prob or len)):
            if not callable(function):
                wrong = f"{what} to be a function, got {shown(function)}"
        if wrong:
            raise UsageError(f"mechanism of {name!r}: expected {wrong}; correct it")
        self.name, self.version, self.noise, self.width, self.monotone = name, version, noise, width, monotone
        self.parents = (parents,) if isinstance(parents, str) else tuple(parents)
        self._predict, self._abduct, self._log_prob = predict, abduct, log_prob

    @property
    def convention(self) -> str:
        """What is assumed about the noise, in one sentence."""
        what = f"one {self.noise} noise" if self.width == 1 else f"{self.width} independent {self.noise} noises"
        grows = ", in which the value strictly increases," if self.monotone else ""
        return f"given by the user as functions of {what}{grows} (version {self.version}); taken on trust"

    # --- calling the user's functions
    def _called(self, what: str, function: Callable[..., Any], shape: tuple[int, ...], *given: Any) -> npt.NDArray[Any]:
        """What a function returned, as an array of ``shape``; UsageError naming attribute and function otherwise."""
        try:
            found = np.asarray(function(*given))
        except Exception as error:
            if lacks_memory(error):  # the batch is too large; the function is not wrong
                raise
            why = f"{type(error).__name__}: {one_line(error, 200)}"
            raise UsageError(f"{what} of {self.name!r}: expected an array, got {why}; correct the function") from error
        if found.shape != shape:
            raise UsageError(f"{what} of {self.name!r}: expected an array of shape {shape}, got {found.shape}")
        number = found.dtype.kind in "fiub"
        if what != "predict" and not number:
            raise UsageError(f"{what} of {self.name!r}: expected numbers, got an array of {found.dtype}")
        # log p of an impossible value is -inf; every other number has to be finite
        fine = np.isfinite(found) | (found == -np.inf if what == "log_prob" else False) if number else pd.notna(found)
        bad = ~np.asarray(fine, dtype=np.bool_)
        if bad.any():
            row = int(np.argmax(bad.reshape(len(found), -1).any(axis=1)))
            raise UsageError(
                f"{what} of {self.name!r}: expected finite numbers or texts, got {found[row]!r} for row {row}; correct the function"
            )
        return found.astype(np.float64) if number else found.astype(object)

    def fit(
        self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0
    ) -> FunctionMechanism:
        """Check on the table that ``predict`` gives back what ``abduct`` took.

        Raises DataError for the first row where it does not: texts exactly, numbers to ``TOLERANCE`` of the column's
        standard deviation.
        """
        if not len(values):
            raise DataError(
                f"mechanism of {self.name!r}: expected at least one row to check its functions on, got an empty table; give some"
            )
        self._same(values, self.predict(self.abduct(values, parents), parents))
        return self

    def _same(self, values: pd.Series, back: npt.NDArray[Any]) -> None:
        given = values.to_numpy()
        if values.dtype == object:
            off = np.asarray(given != back, dtype=np.bool_)
        elif back.dtype == object:
            raise UsageError(f"predict of {self.name!r}: expected numbers, got an array of texts")
        else:
            given = given.astype(np.float64)
            off = np.abs(given - back) > TOLERANCE * spread(given, self.name)[1]
        if off.any():
            row = int(np.argmax(off))
            raise DataError(
                f"mechanism of {self.name!r}, row {str(values.index[row])!r}: predict(abduct(v)) must give v back, expected "
                f"{given[row]!r}, got {back[row]!r}; correct the functions"
            )

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds | None = None) -> Array:
        """The noise (B, K) that gives the values; nothing is drawn."""
        return self._called("abduct", self._abduct, (len(values), self.width), values, parents)

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,) from noise (B, K)."""
        return self._called("predict", self._predict, (len(noise),), noise, parents)

    def draw(self, seeds: Seeds) -> Array:
        """Fresh noise (B, K)."""
        return NOISES[self.noise](seeds, self.width)

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """Values (B,) from fresh noise, row i with ``seeds[i]``."""
        return self.predict(self.draw(one_seed_per_row(seeds, len(parents), self.name)), parents)

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log p(value | parents) (B,) as the user's function says; UsageError when none was given."""
        if self._log_prob is None:
            raise UsageError(
                f"mechanism of {self.name!r}: expected log_prob=, a function of (values, parents), got none; pass it to FunctionMechanism"
            )
        return self._called("log_prob", self._log_prob, (len(values),), values, parents)

    # --- on disk
    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Name, parents and version; not the code."""
        about = {"name": self.name, "parents": list(self.parents), "version": self.version}
        return {"kind": self.kind} | about, {}

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> FunctionMechanism:
        """This object, if it is the one that was saved; UsageError when its name, parents or version differ."""
        for key, own in self.state()[0].items():
            if data.get(key) != own:
                raise UsageError(
                    f"mechanism of {self.name!r}: expected the {key} it was saved with, {data.get(key)!r}, got {own!r}; "
                    "pass the same FunctionMechanism"
                )
        return self
