"""CounterfactualDataset: any labelled image data set, with counterfactuals of its own images mixed in.

    train = CounterfactualDataset(train, "OUT/shards", p=0.5, seed=0)       # the one line

What stands at an index is drawn from (seed, epoch, index) alone (:mod:`cfaug.learn.policies`), so worker count, batch order and
restart change nothing. Policies:

    replace   some images are swapped for counterfactuals of themselves                      (img, y) -> (img, y)
    append    all real images, then counterfactuals: the data set is longer                  (img, y) -> (img, y)
    pairs     factual and counterfactual side by side, for paired losses                     (img, y) -> ((img, y), (img_cf, y))
    groups    target and intervened attributes are independent in what is shown              (img, y) -> (img, y)

The label always comes from the base; so does everything else a sample carries. Not promised: that the mixture helps.
That is what the null control and the counterfactuals-only control are for.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch.utils.data import Dataset, Subset

from cfaug.errors import DataError, UsageError
from cfaug.learn.epochs import Epochs, same_state, tell_epoch, whole
from cfaug.learn.guard import lacking, open_training_shards, refuse_split
from cfaug.learn.match import Matches, match
from cfaug.learn.policies import (
    KINDS,
    Append,
    Draw,
    Drawn,
    Independent,
    Kind,
    Policy,
    PolicyName,
    Replace,
    Uniforms,
    policy_shares,
)
from cfaug.learn.swap.patched_copy import TRANSFORMS, inner_datasets
from cfaug.learn.swap.swappable import open_base, undrawn
from cfaug.offline.read import ShardReader

log = logging.getLogger(__name__)

# items up to which an epoch's draw is held in memory (17 bytes each); above, every item draws its own
DRAWN_TOGETHER = 1 << 21


class CounterfactualDataset(Epochs, Dataset[Any]):
    """A map-style wrapper that yields what ``base`` yields, some images swapped for counterfactuals of themselves.

    ``base``: anything with ``len`` and ``base[i]`` -> (image, target), (image, target, metadata), a dict, ...: torchvision
    data sets, ImageFolder, Hugging Face data sets, Subset and ConcatDataset of these, a class of your own; its transforms are
    applied after the swap. ``shards``: OUT, OUT/shards, a URL or a reader.
    ``p``, ``null_p``: probabilities of a real counterfactual and of a null intervention, p + null_p <= 1 (``append``: how many
    are added, as shares of the images that have some). Default of p: 0.5, with ``pairs`` 1; with ``groups`` it follows from
    the attributes and must be left out, and ``null_p`` is the share of real images that are shown as reconstructions.
    ``policy``: see above. Sources are matched by ``key(i)`` (given here, or what the base knows), else by pixels.
    ``transform``: how a PIL image becomes the image that ``base`` yields; needed only when the base hides its own.
    ``image_key``: which field holds the image, where that is not clear. ``held_out``: data sets none of whose images may be
    a source (:func:`cfaug.learn.guard.open_training_shards`). ``check_labels=False`` lets classes pass that do not
    correspond one to one, ``guard=False`` these and other splits.

    Values of the base (``classes``, ``class_to_idx``, ``targets``, ...) can be read on the wrapper; its methods are called, and its
    attributes set, on ``.base``. ``set_epoch(e)`` changes the draw, in persistent workers too.

    Raises UsageError for probabilities out of range or a base without length, DataError when nothing matches, when a row is not of the
    train split, when the shards were made from other pixels or for other classes; reading raises ShardError (naming shard and
    sample) for damaged or removed shards.
    """

    def __init__(
        self,
        base: Any,
        shards: str | Path | ShardReader,
        p: float | None = None,
        seed: int = 0,
        null_p: float = 0.0,
        key: Callable[[int], str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        policy: PolicyName = "replace",
        image_key: str | int | None = None,
        held_out: Iterable[Any] = (),
        guard: bool = True,
        check_labels: bool = True,
    ) -> None:
        super().__init__()
        self.p, self.null_p = policy_shares(p, null_p, policy)
        self.base, self.seed, self.policy = base, whole("seed", seed), policy
        self._drawn: tuple[int, Drawn] | None = None
        _refuse_two_swaps(base, transform)
        self.opened = open_base(base, transform, image_key)
        if not len(self.opened):
            raise DataError("base: expected images, got an empty data set; check its path or its split")
        if guard:
            refuse_split(base)
        self.reader = open_training_shards(shards, guard, held_out)
        self.matches: Matches = match(self.opened, self.reader, key, guard and check_labels)
        self._tell_missing()
        self._policy = self._chosen()
        self._drawing = policy == "groups" or self.p + self.null_p > 0

    def _chosen(self) -> Policy:
        uniforms = Uniforms(self.seed)
        if self.policy == "groups":
            return Independent(self.matches, uniforms, self.null_p)
        return (Append if self.policy == "append" else Replace)(self.matches, uniforms, self.p, self.null_p)

    def _tell_missing(self) -> None:
        balanced = self.policy == "groups"
        wanted = (
            ("counterfactual", self.matches.counterfactuals, 1.0 if balanced else self.p),
            ("null", self.matches.nulls, self.null_p),
        )
        for kind, count, share in wanted:
            without = int((count == 0).sum())
            if share and without == len(count):
                raise lacking(self.reader, kind)
            if share and without:
                log.warning(
                    "%d of %d images have no %s sample: they stay real%s", without, len(count), kind,
                    ", and their attributes follow the target as before; plan them too, or train on those that have some"
                    if balanced and kind == "counterfactual" else "",
                )  # fmt: skip

    def __len__(self) -> int:
        return self._policy.length

    def __repr__(self) -> str:
        known = int(np.count_nonzero(self.matches.total))
        return (
            f"CounterfactualDataset({type(self.base).__name__}, {str(self.reader.directory)!r}, policy={self.policy!r}, p={self.p}, "
            f"null_p={self.null_p}, seed={self.seed}): {len(self)} items, {known} of {len(self.opened)} images have samples"
        )

    def __getattr__(self, name: str) -> Any:
        # only what the wrapper itself lacks comes here; `base` is missing while an object is being unpickled
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self.base, name)
        if callable(value) and not isinstance(value, type):  # it would show or make a data set without counterfactuals
            raise AttributeError(f"{name!r} is a method of the base, which knows no counterfactuals: call .base.{name}")
        longer = self.policy == "append" and not isinstance(value, str | dict) and hasattr(value, "__len__")
        if longer and len(value) == len(self.opened):
            raise AttributeError(
                f"{name!r} of the base has one value for each of its {len(value)} items, not for {len(self)}"
            )
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # set on the wrapper it would change nothing
        new = "_drawing" in self.__dict__ and name not in self.__dict__ and not hasattr(type(self), name)
        if new and hasattr(self.base, name):
            raise AttributeError(f"{name!r} is an attribute of the base: set .base.{name}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        # every worker draws the epoch itself: what is sent stays small
        return {**super().__getstate__(), "_drawn": None}

    def set_epoch(self, epoch: int) -> None:
        """Show epoch ``epoch``'s draw from now on, in every worker; a base that has epochs is told too."""
        super().set_epoch(epoch)
        tell_epoch(inner_datasets(self.base), epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to show the same again: the epoch, and what the draw depends on besides."""
        return {
            "epoch": self.epoch, "seed": self.seed, "policy": self.policy, "p": self.p, "null_p": self.null_p,
            "length": len(self), "shards": self.reader.fingerprint,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue in the checkpoint's epoch; UsageError where seed, policy, shares, length or shards differ."""
        same_state(state, self.state_dict(), free="epoch")
        self.set_epoch(state["epoch"])

    def draws(self, epoch: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """(kinds, rows) of all items: kind 0 real, 1 counterfactual, 2 null; the shard row, -1 for real."""
        drawn = self._all(epoch)
        return drawn.kinds, drawn.rows

    def _all(self, epoch: int) -> Drawn:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._policy.draw(epoch, 0, len(self)))
        return self._drawn[1]

    def provenance(self, i: int, epoch: int | None = None) -> Draw:
        """What stands at index i (in the present epoch unless said otherwise); with ``pairs`` beside the real image."""
        epoch = self.epoch if epoch is None else epoch
        i = self._index(i)
        if len(self) <= DRAWN_TOGETHER:
            drawn, at = self._all(epoch), i
        else:
            drawn, at = self._policy.draw(epoch, i, 1), 0
        kind: Kind = KINDS[drawn.kinds[at]]
        return Draw(kind, int(drawn.rows[at]) if kind != "real" else None, int(drawn.sources[at]))

    def attributes(self, i: int, epoch: int | None = None) -> Mapping[str, Any]:
        """The attributes of what stands at index i: the record's, or the base table's row for a real image."""
        draw = self.provenance(i, epoch)
        if draw.row is not None:
            return dict(self.reader.record(draw.row)["attributes"])
        return dict(table_of(self.base).iloc[draw.source])

    def _index(self, i: int) -> int:
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(
                f"expected the index of one item, got {i!r}; torch.utils.data.Subset takes many, .base has the columns"
            ) from None
        if not -len(self) <= i < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {i}")
        return i % len(self)

    def __getitem__(self, i: int) -> Any:
        if not self._drawing and self.policy == "replace":
            return self.base[self._index(i)]
        if self._drawing:
            self._serve(1, len(self))
        draw = self.provenance(i)
        if self.policy != "pairs":
            return self._shown(draw)
        with undrawn():  # both are transformed with the same random numbers: one crop, one flip for the two
            shown = self._shown(draw)
        return self.opened.item(draw.source), shown

    def _shown(self, draw: Draw) -> Any:
        if draw.row is None:
            return self.opened.item(draw.source)
        return self.opened.swapped(draw.source, self.reader.picture(draw.row))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many items at once, which a DataLoader asks for: a base that reads batches goes on doing so for the real images."""
        together = getattr(self.base, "__getitems__", None)
        if together is None or self.policy == "pairs":
            return [self[i] for i in indices]
        if self._drawing:
            self._serve(len(indices), len(self))
        draws = [self.provenance(i) for i in indices]
        wanted = [draw.source for draw in draws if draw.row is None]
        real = iter(together(wanted) if wanted else ())  # a transform that stacks cannot make an empty batch
        return [next(real) if draw.row is None else self._shown(draw) for draw in draws]


def table_of(base: Any) -> pd.DataFrame:
    """The attribute table of an AttributeDataset, or of a Subset of one; UsageError where there is none."""
    if isinstance(base, Subset):
        return table_of(base.dataset).iloc[list(base.indices)]
    table = getattr(base, "table", None)
    if not isinstance(table, pd.DataFrame):
        raise UsageError(
            f"attributes of real images: expected a base with a .table, got {type(base).__name__}; use a cfaug.data data set"
        )
    return table


def _refuse_two_swaps(base: Any, transform: Any) -> None:
    """UsageError for a base that is wrapped already, or whose transforms have a RandomCounterfactual."""
    waiting = [transform]
    for part in inner_datasets(base):
        if isinstance(part, CounterfactualDataset):
            raise UsageError(
                "base: expected a data set without counterfactuals, got one that is wrapped already; wrap once"
            )
        waiting += [vars(part).get(name) for name in TRANSFORMS] if hasattr(part, "__dict__") else []
    seen: set[int] = set()
    for one in waiting:  # grows: a Compose has its steps in .transforms, torchvision's StandardTransform in .transform
        if getattr(one, "swaps_images", False) is True:
            raise UsageError(
                "base: expected a transform without RandomCounterfactual, got one that has it: images would be swapped twice; "
                "take it out of the transform, or do not wrap"
            )
        inner = getattr(one, "transforms", None)
        below = [*(inner if isinstance(inner, list | tuple) else ()), getattr(one, "transform", None)]
        waiting += [value for value in below if id(value) not in seen]
        seen.update(map(id, below))
