"""The default image mechanism: a small conditional flow-matching U-Net, trained on the user's images.

decoder         DiffusionDecoder: fit, abduct, predict, save, load
network         the velocity network               sampling       solving the flow there and back
condition       attributes as the network reads them
structure       what is held fixed beside the noise
image_space     pixels, or the latents of an autoencoder
network_input   images as the network sees them
flow_loss       what is minimised                  training       the loop around it
checkpoint      resuming it exactly                distributed    several processes
"""
