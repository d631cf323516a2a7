"""Subcommands of `python -m fastood.data`."""
