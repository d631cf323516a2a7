from dataclasses import replace

import pytest
import torch

from fastood.data import DetectionTask, ImageSet


def image_set(n: int = 4, *, classes: int = 0, size: int = 8, name: str = "set") -> ImageSet:
    return ImageSet(
        name=name,
        images=torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, size, size).contiguous(),
        labels=torch.arange(n) % classes if classes else torch.full((n,), -1),
        source=torch.arange(n) % 2,
        source_names=("even", "odd"),
        class_names=tuple(f"class {k}" for k in range(classes)),
    )


def task(**changes: object) -> DetectionTask:
    parts: dict[str, object] = {
        "id_train": image_set(classes=2),
        "id_test": image_set(classes=2),
        "background": image_set(),
        "ood": {"noise": image_set()},
    }
    return DetectionTask(**(parts | changes))  # type: ignore[arg-type]


def test_subset_keeps_rows_together_in_the_order_asked():
    chosen = image_set(6, classes=3).subset(torch.tensor([5, 0, 5]), name="chosen")
    assert chosen.name == "chosen"
    assert chosen.images[:, 0, 0, 0].tolist() == [5, 0, 5]
    assert chosen.labels.tolist() == [2, 0, 2]
    assert chosen.source.tolist() == [1, 0, 1]
    assert chosen.class_names == ("class 0", "class 1", "class 2")
    assert image_set().subset(torch.tensor([0])).name == "set"


def test_a_subset_may_be_empty():
    assert len(image_set().subset(torch.empty(0, dtype=torch.int64))) == 0


def test_rows_are_a_view():
    whole = image_set(6, classes=3)
    part = whole.rows(2, 5)
    assert (part.images[:, 0, 0, 0].tolist(), part.labels.tolist(), part.source.tolist()) == (
        [2, 3, 4],
        [2, 0, 1],
        [0, 1, 0],
    )
    assert part.images.data_ptr() == whole.images[2].data_ptr()
    assert len(whole.rows(6, 6)) == 0
    for begin, end in ((-1, 2), (4, 3), (0, 7)):
        with pytest.raises(ValueError, match=f"begin and end must be in 0…6 and ascend, got {begin} and {end}"):
            whole.rows(begin, end)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([True, False, True, False]), TypeError, "index must be int64, got torch.bool"),
        (torch.tensor([[0]]), ValueError, r"index must have shape \[M\], got \[1, 1\]"),
        (torch.tensor([4]), ValueError, "index must be in 0…3, got 4"),
        (torch.tensor([-1]), ValueError, "index must be in 0…3, got -1"),
    ],
)
def test_subset_refuses(index, error, message):
    with pytest.raises(error, match=message):
        image_set().subset(index)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(4, 1, 8, 8)}, TypeError, "set: images must be uint8, got torch.float32"),
        ({"images": torch.zeros(4, 8, 8, dtype=torch.uint8)}, ValueError, r"\[N, C, H, W\], got \[4, 8, 8\]"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, TypeError, "labels must be int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels must have shape \[4\], got \[3\]"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, ValueError, "labels must be in 0…1, got 2"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, ValueError, "labels must be in 0…1, got -1"),
        ({"class_names": ()}, ValueError, "labels without class_names must be -1, got 0"),
        ({"source": torch.tensor([0, 1, 2, 0])}, ValueError, "source must be in 0…1, got 2"),
        ({"source_names": ()}, ValueError, "source_names must not be empty"),
    ],
)
def test_image_set_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        replace(image_set(classes=2), **changes)


def test_task_counts_classes():
    assert task().num_classes == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id_train": image_set(0, classes=2)}, "id_train must hold at least one image"),
        ({"ood": {}}, "ood must hold at least one set"),
        ({"ood": {"a": image_set(0)}}, r"ood\['a'\] must hold at least one image"),
        ({"background": image_set(size=9)}, r"background must have images of \[1, 8, 8\] .* got \[1, 9, 9\]"),
        ({"background": image_set(classes=2)}, "background must have no class_names"),
        ({"id_test": image_set()}, "id_test must have class_names"),
        ({"id_test": image_set(classes=3)}, "id_test must have the classes of id_train"),
        (
            {"id_train": image_set(classes=1), "id_test": image_set(classes=1)},
            "id_train must have at least 2 classes, got 1",
        ),
    ],
)
def test_task_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes)
