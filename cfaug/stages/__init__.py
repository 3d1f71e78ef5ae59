"""The pipeline: one function a stage, each resumable; the only place that knows every room.

    diagnose -> fit -> plan -> generate -> train -> evaluate -> report

A stage called by name runs what it needs first. What is done already is recognised by what is on disk (a model that loads,
a plan with its digest, shards in the manifest, results rows) and is not done again.
"""

from __future__ import annotations

from cfaug.stages.pipeline import Pipeline

__all__ = ["Pipeline"]
