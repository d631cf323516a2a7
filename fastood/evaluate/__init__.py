"""Evaluation of detectors on the networks of a run: `python -m fastood.evaluate`."""
