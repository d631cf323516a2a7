"""Training of whole methods, from a configuration to a report: `python -m fastood.train`."""
