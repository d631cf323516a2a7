"""Foundations of all packages: build, optional packages, atomic files, locks, RNG streams. Needs torch and numpy."""
