"""Data sets whose images can be swapped for counterfactuals: ``open_base`` finds out how one makes its items (see ``bases.base``).

| module | what |
|---|---|
| ``base`` | ``Swappable`` and ``open_base``; a data set whose user tells its transform |
| ``known`` | cfaug's data sets, torchvision's folders, WILDS; the order in which kinds are tried |
| ``nested`` | Subset, ConcatDataset, StackDataset, wrappers of a user's own making |
| ``huggingface`` | ``datasets.Dataset`` with an Image column (imported only for those) |
| ``items`` | any other data set, by its ``transform`` or its items |
| ``images``, ``facts``, ``twins`` | an image among its item; keys, labels; a copy that shows another picture |
| ``splits`` | which split a data set says it is |
"""

from cfaug.learn.swap.base import Swappable, open_base

__all__ = ["Swappable", "open_base"]
