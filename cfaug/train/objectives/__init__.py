"""Objectives, sampling weights and schedules: plain functions that fit into any training loop.

======================  ===================================================  =============================================
name                    what it is                                           needs
======================  ===================================================  =============================================
erm_loss                mean cross-entropy                                   labels
soft_target_loss        mean cross-entropy against class probabilities       what lisa_mix (or CutMix, MixUp) returns
group_weighted_loss     importance-weighted mean                             groups of the training images, each step
GroupDRO                worst mixture of groups (Sagawa et al. 2020)         groups of the training images, each step
class_weights           classes drawn evenly                                 labels, once
group_weights           groups drawn evenly                                  groups of the training images, once
importance_weights      the same as weights of groups                        groups of the training images, once
jtt_weights             errors of a first model drawn more (Liu et al. 2021) predictions on the training images, once
lisa_mix                selective mixup (Yao et al. 2022)                    attributes of the training images, each step
paired_consistency_loss counterfactual pairs agree (Reddy et al. 2023)       pairs of factual and counterfactual
dfr                     last layer again (Kirichenko et al. 2023)            groups of some held-out images, after training
from_fake_to_real       synthetic first, then real (Qraitem et al. 2024)     balanced synthetic images, no groups
======================  ===================================================  =============================================

Group codes are whole numbers of any integer dtype, shape (B,) when a sample is in one group and (B, A) when it is in one group per spurious
attribute; -1 is no group, because the attribute is not known. Such samples keep the share that they have in the data:
they are drawn and count as under empirical risk, and only the rest is balanced. A group of their own would let a few
images without a label outweigh thousands.
"""

from __future__ import annotations

from cfaug.train.objectives.checks import as_columns
from cfaug.train.objectives.last_layer import LastLayer, dfr
from cfaug.train.objectives.losses import erm_loss, group_weighted_loss, paired_consistency_loss, soft_target_loss
from cfaug.train.objectives.mix import lisa_mix
from cfaug.train.objectives.robust import GroupDRO
from cfaug.train.objectives.schedule import Epoch, from_fake_to_real
from cfaug.train.objectives.weights import class_weights, group_weights, importance_weights, jtt_weights

__all__ = [
    "Epoch",
    "GroupDRO",
    "LastLayer",
    "as_columns",
    "class_weights",
    "dfr",
    "erm_loss",
    "from_fake_to_real",
    "group_weighted_loss",
    "group_weights",
    "importance_weights",
    "jtt_weights",
    "lisa_mix",
    "paired_consistency_loss",
    "soft_target_loss",
]
