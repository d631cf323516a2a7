"""Results of a run: scores of every variant, metrics with error bars, and warnings."""
