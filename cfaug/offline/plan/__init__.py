"""The plan: one row per counterfactual image, and the only source of randomness in generation."""

from __future__ import annotations

from cfaug.offline.plan.plan import PLAN_FORMAT, ROWS_PER_PART, Plan, PlanRow, PlanSummary, sources_digest

__all__ = ["PLAN_FORMAT", "ROWS_PER_PART", "Plan", "PlanRow", "PlanSummary", "sources_digest"]
