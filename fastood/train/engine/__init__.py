"""Training loop that all methods share: stages, steps, checkpoints, processes and progress."""
