"""Copies of the kernels for other machines: the same bits wherever there are fused multiply-adds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastood
from tests.support.background_pool_samples import LAYOUTS, pool_of

STEPS = 30


def trajectory() -> dict[str, Tensor]:
    """ω, sums and draws of pools of every layout after some steps."""
    found = {}
    for name, weights in LAYOUTS.items():
        for epsilon in (0.3, 0.5):
            pool, generator = pool_of(weights, epsilon=epsilon), torch.Generator().manual_seed(0)
            drawn = []
            for step in range(STEPS):
                index, importance = pool.sample(40, generator=generator, stratified=step % 5 == 4)
                pool.ascend(index, importance, lr=2.0, mode=("exact", "sparse")[step % 2])
                drawn.append(index)
            state = pool._state
            found[f"{name}, {epsilon}, drawn"] = torch.cat(drawn)
            found |= {f"{name}, {epsilon}, {part}": getattr(state, part) for part in ("omega", "masses", "stats")}
    return found


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(capability: str, tmp_path: Path) -> None:
    path = tmp_path / "found"
    script = f"import tests.ops.test_background_pool_capabilities as t; t.save_file(t.trajectory(), {str(path)!r})"
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "FASTOOD_CPU_CAPABILITY": capability,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = load_file(path)
    has_fma = fastood.build_info()["cpu_capability"] != "baseline"
    for name, want in trajectory().items():
        if has_fma and capability == "avx2":
            assert torch.equal(got[name], want), name
        elif name.endswith("omega"):
            # Double stands in for fused multiply-adds: the rarest last bit may differ.
            torch.testing.assert_close(got[name], want, rtol=1e-5, atol=1e-5)


__all__ = ["save_file", "trajectory"]
