"""Closed-form interventions: what an attribute's values do to an image is given, not learned.

decoder      FunctionalDecoder
functions    the closed list of functions, and how each is undone
stamps       texts and pictures on an image: drawn, found, taken away
"""
