"""Every op in plain float64 PyTorch: the formulas as the papers state them, for tests and for reading."""
