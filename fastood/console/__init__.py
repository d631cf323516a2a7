"""Text for people: options, help, names and counts, and terminals that may be closed or full."""
