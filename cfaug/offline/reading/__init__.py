"""Reading what is on disk and trusting none of it: the manifest, the closed table of decoders, scans."""
