"""Edges proposed from the attribute table; a proposal is a hypothesis until the user confirms it."""
