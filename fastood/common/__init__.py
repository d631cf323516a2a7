"""Foundations of every part: build, optional packages, whole files, locks, RNG streams; torch and numpy alone."""
