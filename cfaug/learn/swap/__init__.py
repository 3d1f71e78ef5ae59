"""How an image is swapped for a counterfactual inside any data set: its own ``__getitem__`` runs on a copy with a hook in it.

| module | what |
|---|---|
| ``swappable`` | ``open_base`` and ``Swappable``: a data set's untransformed images, and its items around other pictures |
| ``patched_copy`` | the copy and its hooks: on ``transform``, on an ImageFolder's ``loader``, in the data sets inside |
| ``huggingface`` | the hook for the image column of a ``datasets.Dataset`` (imported only for those) |
"""

from cfaug.learn.swap.swappable import Swappable, open_base

__all__ = ["Swappable", "open_base"]
