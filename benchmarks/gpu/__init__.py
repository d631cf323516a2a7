"""Run of a bare GPU machine in stages: build, tests, sanitizers, times and profiles; see README.md of this folder.

The package imports the standard library alone, so that a machine without torch still gets a verdict that says so.
"""
