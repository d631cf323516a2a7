"""Command lines: options and help, printable names and counts, and streams that may be closed or full."""
