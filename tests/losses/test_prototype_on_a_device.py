"""The prototype loss on a device, where no value is read."""

import torch

from fastood.losses import PrototypeLoss
from tests.emulation.device import emulated_cuda
from tests.emulation.waits import count_host_waits


def test_a_target_out_of_range_makes_the_loss_nan() -> None:
    features, prototypes = torch.randn(4, 3), torch.randn(5, 2, 3)
    good, bad = torch.tensor([0, 4, -1, 2]), torch.tensor([0, 5, -1, 2])
    want = PrototypeLoss().with_per_sample(features, prototypes, good)
    with emulated_cuda():
        on_device = features.cuda(), prototypes.cuda()
        targets = good.cuda(), bad.cuda()
        with count_host_waits() as waits:
            got = PrototypeLoss().with_per_sample(*on_device, targets[0])
            wrong = PrototypeLoss().with_per_sample(*on_device, targets[1])
        assert not waits, waits
        for result, expected in zip(got, want, strict=True):
            assert torch.equal(result.cpu(), expected)
        assert wrong[0].cpu().isnan()
        assert wrong[1].cpu().isnan().tolist() == [False, True, False, False]
