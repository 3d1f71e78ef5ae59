"""Counterfactuals by layers: an object, a background, and a mask between them.

decoder        LayeredDecoder
layers         which attribute lives in which layer
bank           layers of training images, found by the values of their attributes
compositing    the equation of layers: rims, holes, fillings
object_decoder an object redrawn by a diffusion decoder of objects alone
recolour       an object in the colours, or with the surface, of another
mask_sources   where masks come from: given, GrabCut, a salient-object net, attribution, a function
masked         a data set with such masks, computed once
mask_gate      no composite of an image whose object was not found
mask_quality   area, border, agreement of two sources
"""
