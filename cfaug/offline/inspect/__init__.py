"""What is said about shards: figures, pictures, the dataset card, and the log of a run."""
