"""What is said about shards: figures, pictures, the dataset card, Croissant, and the log of a run."""
