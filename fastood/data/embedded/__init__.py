"""Embedded default task: digits, letters and photographs that installed packages bring, without a download."""
