"""The default image mechanism: a small conditional flow-matching U-Net, trained on the user's images."""
