from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastood.ops._extension import BuildInfo

_Float = TypeVar("_Float", np.float32, np.float64)

def build_info() -> BuildInfo: ...
def uniformity(logits: NDArray[_Float]) -> tuple[NDArray[_Float], NDArray[_Float]]: ...
