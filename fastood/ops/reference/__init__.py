"""References of the ops in plain float64 PyTorch: the formulas that the tests compare the kernels with."""
