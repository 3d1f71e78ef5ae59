"""Floor 1: the causal graph, interventions, mechanisms and the SCM of the attributes; what they assume, tested and said."""

from __future__ import annotations

from cfaug.causal.acted_scm import ActedSCM
from cfaug.causal.audit.assumptions import assumption_card
from cfaug.causal.audit.confounding import confounding, cramers_v, missing_counts, normalised_mutual_information
from cfaug.causal.audit.diagnosis import diagnose
from cfaug.causal.audit.falsification import falsify
from cfaug.causal.audit.independence import Independence, IndependenceTest
from cfaug.causal.audit.plan_effect import forecast
from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.discovery import Discovery, discover
from cfaug.causal.graph import CausalGraph, refuse_if_ancestor, refuse_unconfirmed
from cfaug.causal.intervention import Change, Intervention, do, flip, resample, scale, shift, uniform
from cfaug.causal.mechanisms.functions import FunctionMechanism
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.causal.mechanisms.registry import MECHANISMS
from cfaug.causal.noise import Noise
from cfaug.causal.scm import SCM

__all__ = [
    "MECHANISMS",
    "SCM",
    "ActedSCM",
    "Background",
    "CausalGraph",
    "Change",
    "Discovery",
    "FunctionMechanism",
    "Independence",
    "IndependenceTest",
    "Intervention",
    "Mechanism",
    "Noise",
    "assumption_card",
    "confounding",
    "cramers_v",
    "diagnose",
    "discover",
    "do",
    "falsify",
    "flip",
    "forecast",
    "missing_counts",
    "normalised_mutual_information",
    "refuse_if_ancestor",
    "refuse_unconfirmed",
    "resample",
    "scale",
    "shift",
    "uniform",
]
