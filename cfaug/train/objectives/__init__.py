"""Objectives, sampling weights and schedules: plain functions that fit into any training loop.

======================  ===================================================  =============================================
name                    what it is                                           needs
======================  ===================================================  =============================================
erm_loss                mean cross-entropy                                   labels, or the soft targets of lisa_mix
GroupDRO                worst mixture of groups (Sagawa et al. 2020)         groups of the training images, each step
class_weights           classes drawn evenly                                 labels, once
group_weights           groups drawn evenly                                  groups of the training images, once
origin_weights          groups drawn evenly within real and generated images groups and origins of a mixture, once
jtt_weights             errors of a first model drawn more (Liu et al. 2021) predictions on the training images, once
lisa_mix                selective mixup (Yao et al. 2022)                    attributes of the training images, each step
paired_consistency_loss counterfactual pairs agree (Reddy et al. 2023)       pairs of factual and counterfactual
dfr                     last layer again (Kirichenko et al. 2023)            groups of some held-out images, after training
from_fake_to_real       synthetic first, then real (Qraitem et al. 2024)     balanced synthetic images, no groups
======================  ===================================================  =============================================

Group codes are whole numbers, shape (B,) when a sample is in one group and (B, A) when it is in one group per spurious
attribute; -1 is no group, because the attribute is not known. Such samples keep their share of the data:
they are drawn and count as under empirical risk, and only the rest is balanced. As a group of their own, a few
images without a label would outweigh thousands.
"""

from __future__ import annotations

from cfaug.train.objectives.checks import as_columns
from cfaug.train.objectives.group_dro import GroupDRO
from cfaug.train.objectives.last_layer import LastLayer, dfr
from cfaug.train.objectives.lisa import lisa_mix
from cfaug.train.objectives.losses import erm_loss, paired_consistency_loss
from cfaug.train.objectives.schedule import Epoch, from_fake_to_real
from cfaug.train.objectives.weights import class_weights, group_weights, jtt_weights, origin_weights

__all__ = [
    "Epoch",
    "GroupDRO",
    "LastLayer",
    "as_columns",
    "class_weights",
    "dfr",
    "erm_loss",
    "from_fake_to_real",
    "group_weights",
    "jtt_weights",
    "lisa_mix",
    "origin_weights",
    "paired_consistency_loss",
]
