"""Judging classifiers by their worst group, and counterfactuals by axioms. Takes tables and callables."""

from __future__ import annotations

from cfaug.judge.accuracy import (
    WorstGroup,
    adjusted_average_accuracy,
    average_accuracy,
    group_accuracy,
    read_results,
    result_row,
    worst_group_accuracy,
    write_results,
)
from cfaug.judge.tables import MethodSummary, attribute_gaps, format_table, gap_closed, summarise

__all__ = [
    "MethodSummary",
    "WorstGroup",
    "adjusted_average_accuracy",
    "attribute_gaps",
    "average_accuracy",
    "format_table",
    "gap_closed",
    "group_accuracy",
    "read_results",
    "result_row",
    "summarise",
    "worst_group_accuracy",
    "write_results",
]
