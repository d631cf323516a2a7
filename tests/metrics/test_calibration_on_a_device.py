"""p-values on a device, where no value is read."""

import torch

from fastood.metrics import ScoreCalibration
from tests.emulation.device import emulated_cuda
from tests.emulation.waits import count_host_waits


def test_the_p_value_of_nan_is_nan() -> None:
    held_out, scores = torch.arange(99.0), torch.tensor([50.0, torch.nan, 1000.0])
    want = ScoreCalibration(held_out).p_values(scores.nan_to_num(50.0))
    with emulated_cuda():
        calibration, on_device = ScoreCalibration(held_out.cuda()), scores.cuda()
        with count_host_waits() as waits:
            got = calibration.p_values(on_device)
        assert not waits, waits
        assert got.cpu().isnan().tolist() == [False, True, False]
        assert torch.equal(got.cpu()[[0, 2]], want[[0, 2]])
