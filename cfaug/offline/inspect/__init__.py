"""Descriptions of shards: an inspection in figures, its text, a contact sheet, and the dataset card."""
