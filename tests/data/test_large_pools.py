"""Pools that the benchmarks write without decoding images: each file equals the one that `pack` writes."""

import json

import numpy as np

from benchmarks.large_pools import write_large_pool
from fastood.data.packed.packed_pool import open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays
from tests.support.packed_pool_samples import digests


def test_a_large_pool_is_what_pack_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.large_pools.AT_ONCE", 50)
    opened = open_packed(write_large_pool(tmp_path / "large", 130))
    assert not any(opened.damage())
    np.save(tmp_path / "large.npy", opened.images.numpy()[:, 0])
    packed = pack(open_arrays(tmp_path / "large.npy", None, field="source"), tmp_path / "packed", origin="npy", size=8)
    ours, theirs = digests(opened.path), digests(packed.path)
    # The headers differ in the origin and the digest of the source.
    headers = [json.loads((pool.path / "pool.json").read_text()) for pool in (opened, packed)]
    assert headers[1].keys() - headers[0].keys() == {"files_and_labels_sha256"}
    assert {name for name in theirs if ours[name] != theirs[name]} == {"pool.json"}
    assert all(headers[0][name] == headers[1][name] for name in headers[0].keys() - {"origin"})
