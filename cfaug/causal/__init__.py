"""Floor 1: the causal graph, interventions, mechanisms and the SCM of the attributes."""

from __future__ import annotations

from cfaug.causal.confounding import confounding, cramers_v, diagnose, missing_counts, normalised_mutual_information
from cfaug.causal.flows import ContinuousMechanism
from cfaug.causal.graph import CausalGraph, check_label_safety, refuse_if_ancestor
from cfaug.causal.intervention import Intervention, do
from cfaug.causal.mechanisms import CategoricalMechanism, ImageMechanism, Mechanism
from cfaug.causal.scm import SCM, ActedSCM, Noise

__all__ = [
    "SCM",
    "ActedSCM",
    "CategoricalMechanism",
    "CausalGraph",
    "ContinuousMechanism",
    "ImageMechanism",
    "Intervention",
    "Mechanism",
    "Noise",
    "check_label_safety",
    "confounding",
    "cramers_v",
    "diagnose",
    "do",
    "missing_counts",
    "normalised_mutual_information",
    "refuse_if_ancestor",
]
