"""Mechanisms, how one attribute follows from its parents and its noise: ``protocol``, one file per kind, ``registry`` of names."""
