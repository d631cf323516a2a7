"""Synthesised outliers: each background image blended with an in-distribution one."""

from dataclasses import replace

import pytest
import torch

from fastood.data import DataConfig, EmbeddedConfig, load_task
from fastood.data.images.blending import blend_images
from fastood.data.images.encoded import EncodedImages
from tests.support.tiny_run import tiny_task


def test_a_blend_is_one_tenth_in_distribution():
    task = tiny_task()
    task.id_train.images[:] = torch.arange(96, dtype=torch.uint8).view(-1, 1, 1, 1)
    blends = blend_images(task.background, task.id_train, alpha=0.1, generator=torch.Generator().manual_seed(0))
    partners = torch.randint(96, (160,), generator=torch.Generator().manual_seed(0)).view(-1, 1, 1, 1)
    want = 0.9 * task.background.images.double() + 0.1 * partners.double()
    # Rounding, and that of 0.1 itself.
    assert (blends.images - want).abs().max() <= 0.5 + 1e-9
    assert torch.equal(blends.source, task.background.source)
    assert blends.sha256() != task.background.sha256()
    assert len(partners.unique()) > 60
    assert blends.name == "noise and stripes, blended"


def test_the_option_blends_the_background_alone():
    config = DataConfig(embedded=EmbeddedConfig(pool_size=50, ood_size=10))
    plain, blended, again = (
        load_task(chosen, seed=0) for chosen in (config, replace(config, blend=0.1), replace(config, blend=0.1))
    )
    assert torch.equal(blended.background.images, again.background.images)
    change = (blended.background.images.double() - plain.background.images).abs()
    assert 0 < change.max() <= 26
    assert torch.equal(blended.id_train.images, plain.id_train.images)
    assert all(torch.equal(blended.ood[name].images, plain.ood[name].images) for name in plain.ood)


def test_errors_name_the_argument():
    task = tiny_task()
    generator = torch.Generator()
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"alpha must be in \(0, 1\), got {alpha}"):
            blend_images(task.background, task.id_train, alpha=alpha, generator=generator)
        with pytest.raises(ValueError, match=rf"data.blend must be in \(0, 1\), or None, got {alpha}"):
            DataConfig(blend=alpha)
    with pytest.raises(ValueError, match=r"data\.blend must be None for a packed data\.background, got 0\.1"):
        DataConfig(in_dist="cifar10", background="packed:pool", ood=("svhn",), blend=0.1)
    small = replace(task.background, images=task.background.images[:, :, :4])
    with pytest.raises(ValueError, match=r"background must have images of \[1, 8, 8\] as id_images has"):
        blend_images(small, task.id_train, alpha=0.1, generator=generator)
    nothing = task.id_train.subset(torch.arange(0))
    with pytest.raises(ValueError, match="id_images must hold at least one image, got none"):
        blend_images(task.background, nothing, alpha=0.1, generator=generator)
    files = EncodedImages(files=("a.png",), size=8, channels=1)
    encoded = replace(task.background, images=files, labels=torch.tensor([-1]), source=torch.tensor([0]))
    with pytest.raises(ValueError, match="background must be in memory to be blended, noise and stripes is still"):
        blend_images(encoded, task.id_train, alpha=0.1, generator=generator)
