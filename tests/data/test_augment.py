import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastood.data import Augment, AugmentDraws, epoch_batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 32, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator(7))


def test_normalize_is_the_papers():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    assert Augment().normalize(images).flatten().tolist() == pytest.approx([-2, -1.2, 2])


@pytest.mark.parametrize("flip", [False, True])
def test_every_image_is_a_crop_of_its_padded_self(flip):
    images = random_images(200)
    augment = Augment(padding=2, flip=flip)
    batch = augment(images, generator=generator())
    padded = augment.normalize(torch.nn.functional.pad(images, (2, 2, 2, 2)))
    found = set()
    for image, whole in zip(batch, padded, strict=True):
        crops = {
            (top, left, mirrored): whole[:, top : top + 16, left : left + 16].flip(-1) if mirrored
            else whole[:, top : top + 16, left : left + 16]
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
        }  # fmt: skip
        found.add(next(place for place, crop in crops.items() if torch.equal(crop, image)))
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(5))
    assert {mirrored for _, _, mirrored in found} == ({False, True} if flip else {False})


def test_padding_is_black_and_an_eighth_by_default():
    white = torch.full((500, 1, 16, 16), 255, dtype=torch.uint8)
    batch = Augment()(white, generator=generator())
    black_rows = (batch == -2).all(dim=3)[:, 0].sum(1)
    assert set(batch.unique().tolist()) == {-2.0, 2.0}
    assert sorted(black_rows.unique().tolist()) == [0, 1, 2]


def test_without_padding_and_flip_only_normalises():
    images = random_images()
    augment = Augment(padding=0)
    assert torch.equal(augment(images, generator=generator()), augment.normalize(images))


def test_draws_do_not_depend_on_content():
    first, second = generator(), generator()
    Augment(flip=True)(random_images(), generator=first)
    Augment(flip=True)(torch.zeros_like(random_images()), generator=second)
    assert torch.equal(first.get_state(), second.get_state())


def test_same_generator_same_batch_and_the_global_one_is_untouched():
    state = torch.get_rng_state()
    batches = [Augment(flip=True)(random_images(), generator=generator(3)) for _ in range(2)]
    list(epoch_batches(10, 3, generator=generator(), drop_last=False))
    assert torch.equal(*batches)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_call_is_the_draw_applied_to_all_images():
    augment, images = Augment(flip=True), random_images()
    draws = augment.draw(32, height=16, generator=generator(1))
    batch = augment(images, generator=generator(1))
    assert torch.equal(augment.apply(images, torch.arange(32), draws), batch)
    order = torch.randperm(32, generator=generator(2))
    turned = AugmentDraws(rows=draws.rows[order], columns=draws.columns[order], flip=draws.flip[order])
    assert torch.equal(augment.apply(images, order, turned), batch[order])


def test_draws_are_those_that_runs_have_always_had():
    """The order of the stream: rows, columns, coins. Another would change every run."""
    draws = Augment(flip=True).draw(9, height=32, generator=generator(5))
    stream = generator(5)
    shift = torch.randint(9, (2, 9, 1), generator=stream)
    assert torch.equal(draws.rows, shift[0, :, 0])
    assert torch.equal(draws.columns, shift[1, :, 0])
    assert torch.equal(draws.flip, torch.rand(9, 1, generator=stream)[:, 0] < 0.5)
    still = Augment(padding=0).draw(9, height=32, generator=generator(5))
    assert not still.rows.any()
    assert not still.columns.any()
    assert not still.flip.any()


def test_apply_refuses():
    draws = Augment().draw(2, height=16, generator=generator())
    with pytest.raises(ValueError, match=r"index must be in \[0, 31\], got 32"):
        Augment().apply(random_images(), torch.tensor([0, 32]), draws)
    with pytest.raises(ValueError, match=r"rows must have shape \[3\] like index, got \[2\]"):
        Augment().apply(random_images(), torch.arange(3), draws)
    with pytest.raises(ValueError, match="images must have shape"):
        Augment().apply(random_images()[0], torch.arange(2), draws)


def test_images_need_not_be_square_nor_contiguous():
    images = random_images(height=16, width=24).permute(0, 1, 3, 2)
    assert Augment(flip=True)(images, generator=generator()).shape == (32, 3, 24, 16)
    assert Augment()(images[:0], generator=generator()).shape == (0, 3, 24, 16)


@pytest.mark.parametrize("use", [Augment().normalize, lambda images: Augment()(images, generator=generator())])
def test_augment_refuses(use):
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        use(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\], got \[1, 8, 8\]"):
        use(torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="padding must be 0 or larger, got -1"):
        Augment(padding=-1)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 60), st.booleans(), st.integers(0, 5))
def test_an_epoch_visits_every_example_once(num_examples, batch_size, drop_last, seed):
    if drop_last and batch_size > num_examples:
        with pytest.raises(ValueError, match=f"got {batch_size} for {num_examples} examples"):
            epoch_batches(num_examples, batch_size, generator=generator(seed), drop_last=drop_last)
        return
    batches = list(epoch_batches(num_examples, batch_size, generator=generator(seed), drop_last=drop_last))
    seen = torch.cat(batches)
    assert seen.dtype == torch.int64
    assert len(seen.unique()) == len(seen)
    assert 0 <= int(seen.min()) <= int(seen.max()) < num_examples
    assert all(len(batch) == batch_size for batch in batches[:-1])
    dropped = num_examples % batch_size if drop_last else 0
    assert len(seen) == num_examples - dropped


def test_epochs_differ_and_the_order_is_drawn_at_the_call():
    stream = generator()
    first = epoch_batches(100, 100, generator=stream, drop_last=False)
    second = epoch_batches(100, 100, generator=stream, drop_last=False)
    order = torch.randperm(100, generator=generator())
    assert not torch.equal(next(second), order)
    assert torch.equal(next(first), order)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(0, 4), (4, 0)])
def test_epoch_batches_refuses_before_drawing(num_examples, batch_size):
    stream = generator()
    state = stream.get_state()
    with pytest.raises(ValueError, match="must be 1 or larger, got 0"):
        epoch_batches(num_examples, batch_size, generator=stream, drop_last=False)
    assert torch.equal(stream.get_state(), state)
