"""A pool as a file: bit for bit, readable by others, refused when damaged."""

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastood.samplers import BackgroundPool
from tests.support.background_pool_samples import LAYOUTS, pool_of


@pytest.fixture
def pool(generator: torch.Generator) -> BackgroundPool:
    pool = pool_of(LAYOUTS["three levels"], epsilon=0.3, momentum=0.8)
    for mode in ("sparse", "exact", "sparse"):
        pool.ascend(pool.sample(50, generator=generator)[0], torch.rand(50, generator=generator), lr=40.0, mode=mode)
    return pool


def test_a_loaded_pool_goes_on_bit_for_bit(pool: BackgroundPool, tmp_path: Path, generator: torch.Generator) -> None:
    before = pool.weights
    pool.save(tmp_path / "pool.safetensors")
    loaded = BackgroundPool.from_file(tmp_path / "pool.safetensors")
    assert (loaded.epsilon, loaded.momentum, len(loaded)) == (0.3, 0.8, len(pool))
    seed = generator.get_state()
    drawn = []
    for each in (pool, loaded):
        generator.set_state(seed)
        for mode in ("exact", "sparse"):
            index, importance = each.sample(40, generator=generator)
            each.ascend(index, importance, lr=10.0, mode=mode)
        drawn.append((index, importance, *each.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    # Steps are the pool's own: the file is as it was.
    assert torch.equal(BackgroundPool.from_file(tmp_path / "pool.safetensors").weights, before)


def test_others_read_the_file(pool: BackgroundPool, tmp_path: Path) -> None:
    pool.save(tmp_path / "pool.safetensors")
    read = load_file(tmp_path / "pool.safetensors")
    assert read.keys() == pool.state_dict().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in pool.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["pool.safetensors"]


def test_a_failed_write_leaves_the_old_file(
    pool: BackgroundPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.safetensors"
    pool.save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        BackgroundPool(10).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["pool.safetensors"]


def damaged(content: bytes) -> dict[str, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(changed: dict[str, object]) -> bytes:
        encoded = json.dumps(changed).encode()
        return struct.pack("<Q", len(encoded)) + encoded + data

    without_velocity = {name: entry for name, entry in header.items() if name != "velocity"}
    return {
        "empty": b"",
        "cut short": content[:-5],
        "cut in the header": content[:20],
        "no header": b"\xff" * 100,
        "a list": with_header([1, 2]),
        "other dtype": with_header({**header, "omega": {**header["omega"], "dtype": "I64"}}),
        "other shape": with_header({**header, "omega": {**header["omega"], "shape": [7]}}),
        "negative offset": with_header({**header, "omega": {**header["omega"], "data_offsets": [-4, 0]}}),
        "no velocity": with_header(without_velocity),
        "no options": with_header({**header, "__metadata__": {}}),
        "nonsense options": with_header({**header, "__metadata__": {"epsilon": "7", "momentum": "0"}}),
        "no table of options": with_header({**header, "__metadata__": None}),
        "options that are no text": with_header({**header, "__metadata__": {"epsilon": None, "momentum": "0"}}),
        "nested without end": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "NaN": content[:-4] + struct.pack("<f", float("nan")),
    }


def test_damaged_files_are_refused(pool: BackgroundPool, tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    pool.save(path)
    for content in damaged(path.read_bytes()).values():
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged (is not a complete|does not hold a) background pool"):
            BackgroundPool.from_file(tmp_path / "damaged")
    with pytest.raises(FileNotFoundError):
        BackgroundPool.from_file(tmp_path / "absent")


def test_saving_takes_no_second_copy(tmp_path: Path) -> None:
    pool = BackgroundPool(20_000_000)  # 160 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool.save(tmp_path / "pool.safetensors")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 40e6
