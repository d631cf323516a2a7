"""Tests that cannot hold on the emulation, each with its reason; parts of their names are enough."""

ON_DEVICE: dict[str, str] = {}

AS_CPU: dict[str, str] = {}
