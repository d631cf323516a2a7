"""Training that went wrong by its numbers."""


class NonFiniteLossError(ArithmeticError):
    """The loss or a weight became NaN or infinite; the message names the step and its images."""
