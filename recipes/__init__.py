"""Recipes that people copy, as package data (an editable install finds a mapped package only by its __init__)."""
