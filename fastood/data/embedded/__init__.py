"""Embedded default task: digits, letters and photographs of installed packages, without a download."""
