"""Labels and sources that are constant, and the digests that runs were begun with."""

import hashlib
import json

import numpy as np
import pytest
import torch

from fastood.data import ImageSet
from fastood.data.images import digests
from fastood.data.images.digests import digest_of_subset
from fastood.data.images.noise import NOISES, noise_chunks
from fastood.data.images.row_values import check_range, constant_rows, count_rows, row_chunks, take_rows
from fastood.data.packed.packed_pool import open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays

CHUNK = 1 << 17
GOLDEN = "e8b95d1d09a55e2de6136e1a79815c9ee8f4500ada4884b69e70913314d7c431"
GOLDEN_OF_FILES = "e86a05fd328e3649b0d26aede13c9a35e2cf5ff06b30b1ce0e4a7e435156bf7e"
"""SHA-256 of two sets as earlier versions computed them, from labels and sources that were stored one by one."""


def image_set(labels: torch.Tensor, source: torch.Tensor, **changes: object) -> ImageSet:
    images = (torch.arange(len(labels) * 64) % 251).to(torch.uint8).view(-1, 1, 8, 8)
    return ImageSet(name="set", images=images, labels=labels, source=source, source_names=("a", "b"), **changes)


def test_constant_values_take_eight_bytes_and_act_as_stored_ones():
    constant, stored = constant_rows(1, 2 * CHUNK + 3), torch.ones(2 * CHUNK + 3, dtype=torch.int64)
    index = torch.tensor([0, 2 * CHUNK + 2, 5])
    some, one = take_rows(constant, index), constant[7:8]
    assert [values.untyped_storage().nbytes() for values in (constant, some, one)] == [8, 8, 8]
    assert torch.equal(some, take_rows(stored, index))
    assert len(take_rows(constant, index[:0])) == 0
    assert torch.equal(count_rows(constant, minlength=3), count_rows(stored, minlength=3))
    assert torch.equal(torch.cat([chunk.clone() for chunk in row_chunks(constant)]), stored)
    assert count_rows(constant_rows(1, 0), minlength=2).tolist() == [0, 0]
    for values in (constant, stored):
        with pytest.raises(ValueError, match="set: labels must be 0, got 1"):
            check_range("set", "labels", values, 0, 1)
    late = torch.zeros(2 * CHUNK, dtype=torch.int64)
    late[-1] = 5
    with pytest.raises(ValueError, match=r"set: source must be in 0…3, got 5"):
        check_range("set", "source", late, 0, 4)


def test_digests_are_those_of_earlier_versions():
    labels, source = constant_rows(-1, 5), torch.tensor([0, 1, 1, 0, 1])
    assert image_set(labels, source).sha256() == GOLDEN
    assert image_set(labels.clone(), source).sha256() == GOLDEN
    of_files = image_set(labels, constant_rows(0, 5), digest=lambda: "ab", digest_covers_rows=True)
    assert of_files.sha256() == GOLDEN_OF_FILES


def test_rows_that_a_digest_covers_are_not_hashed_in_large_sets(monkeypatch):
    def digest_of(source: torch.Tensor, *, covers: bool) -> str:
        images = image_set(constant_rows(-1, 5), source, digest=lambda: "ab", digest_covers_rows=covers)
        return images.sha256()

    first, second = torch.tensor([0, 1, 1, 0, 1]), torch.zeros(5, dtype=torch.int64)
    assert digest_of(first, covers=True) != digest_of(second, covers=True)
    monkeypatch.setattr(digests, "HASHED_ROWS", 4)
    assert digest_of(first, covers=True) == digest_of(second, covers=True)
    assert digest_of(first, covers=False) != digest_of(second, covers=False)


def test_a_range_has_the_digest_of_its_numbers():
    chosen = range(CHUNK - 5, 2 * CHUNK + 9)
    of_range, of_tensor = (digest_of_subset(lambda: "ab", index) for index in (chosen, torch.tensor(chosen)))
    assert of_range() == of_tensor()


@pytest.mark.parametrize("kind", list(NOISES))
def test_noise_in_chunks_is_noise_in_one_draw(kind):
    # 7 images of 81 pixels are left for the last chunk, no multiple of the 16 numbers that PyTorch draws together.
    shape = (1, 9, 9)
    chunks = noise_chunks(kind, 2055, shape, generator=torch.Generator().manual_seed(3), space="pixel")
    at_once = NOISES[kind]((2055, *shape), generator=torch.Generator().manual_seed(3), space="pixel")
    assert torch.equal(torch.cat(list(chunks)), (at_once * 255).round().to(torch.uint8))


def test_a_pool_records_the_range_of_its_labels(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((6, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.array([4, 0, 2, 2, 1, 3]))
    for name, labels in (("bare", None), ("labelled", tmp_path / "y.npy")):
        pack(open_arrays(tmp_path / "x.npy", labels, field="source"), tmp_path / name, origin="npy:x.npy", size=8)
    assert open_packed(tmp_path / "labelled").label_range == (0, 4)
    bare = open_packed(tmp_path / "bare")
    assert bare.label_range == (-1, -1)
    assert bare.as_source().labels is None
    images = bare.image_set()
    of_rows = np.full(6, -1).tobytes() + np.zeros(6, dtype=np.int64).tobytes()
    assert images.sha256() == hashlib.sha256(b"(6, 1, 8, 8)" + bare.digest().encode() + of_rows).hexdigest()
    # Pools of earlier versions do not record it.
    header = json.loads((tmp_path / "bare/pool.json").read_text())
    assert header.pop("label_range") == [-1, -1]
    (tmp_path / "bare/pool.json").write_text(json.dumps(header))
    earlier = open_packed(tmp_path / "bare")
    assert (earlier.label_range, earlier.image_set().sha256()) == ((-1, -1), images.sha256())
