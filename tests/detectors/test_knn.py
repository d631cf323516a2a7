"""k-th nearest neighbours are the right ones for any features, by brute force in float64."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.detectors import KNN
from fastood.detectors import neighbours as neighbours_module
from fastood.detectors.neighbours import NeighbourSearch


def labels_of(bank: Tensor) -> Tensor:
    return torch.zeros(len(bank), dtype=torch.int64)


def by_brute_force(bank: Tensor, queries: Tensor, k: int, normalize: bool) -> Tensor:
    bank, queries = bank.double(), queries.double()
    if normalize:
        bank, queries = F.normalize(bank), F.normalize(queries)
    found = [(bank - query).square().sum(1).kthvalue(k).values.sqrt() for query in queries]
    return torch.stack(found)


def clusters(rows: int, generator: torch.Generator, width: int = 16) -> Tensor:
    centres = 3 * torch.randn(10, width, generator=generator)
    return centres[torch.randint(0, 10, (rows,), generator=generator)] + torch.randn(rows, width, generator=generator)


def offset(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 8, generator=generator) + 1e4


def offset_in_double(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 8, generator=generator, dtype=torch.float64) + 1e9


def cone(rows: int, generator: torch.Generator) -> Tensor:
    """Directions with a cosine of 0.999999 to each other."""
    return 7 * (torch.ones(32) + 1e-3 * torch.randn(rows, 32, generator=generator))


def duplicates(rows: int, generator: torch.Generator) -> Tensor:
    few = torch.randn(5, 8, generator=generator)
    return few[torch.randint(0, 5, (rows,), generator=generator)]


def nearly_duplicates(rows: int, generator: torch.Generator) -> Tensor:
    """Clusters whose spread is far below what products resolve, in float64 too."""
    shape = rows, 8
    few = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    noise = 1e-9 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return few[torch.randint(0, 5, (rows,), generator=generator)] + noise


def one_far_off(rows: int, generator: torch.Generator) -> Tensor:
    found = torch.randn(rows, 8, generator=generator)
    found[::100] *= 1e6
    return found


def huge(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 8, generator=generator) * 1e25


def tiny(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 8, generator=generator) * 1e-30


KINDS = [clusters, offset, offset_in_double, cone, duplicates, nearly_duplicates, one_far_off, huge, tiny]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 10, 595, 600])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_kth_neighbour_is_that_of_brute_force(
    kind: object, k: int, normalize: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours_module, "TILE_NUMBERS", 1000)
    monkeypatch.setattr(neighbours_module, "EXACT_NUMBERS", 3000)
    made = kind(640, generator)  # type: ignore[operator]
    bank, queries = made[:600], torch.cat([made[600:], made[:3]])
    detector = KNN(k=k, normalize=normalize).fit_features(bank, labels_of(bank))
    want = by_brute_force(bank, queries, k, normalize)
    torch.testing.assert_close(detector.predict_features(queries), want, rtol=1e-9, atol=0)


def test_the_three_vectors_of_faiss(generator: torch.Generator) -> None:
    query = torch.tensor([[4208848.0, 2334863.5, 4171170.2]])
    near = torch.tensor([[4208843.5, 2334869.5, 4171171.5]])
    bank = torch.cat([query + torch.randn(5000, 3, generator=generator) * 600, near])
    detector = KNN(k=1, normalize=False).fit_features(bank, labels_of(bank))
    torch.testing.assert_close(detector.predict_features(query), (query - near).double().norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_autocast_changes_nothing(dtype: torch.dtype, normalize: bool, generator: torch.Generator) -> None:
    made = clusters(3000, generator, width=64).relu()
    bank, queries = made[:2800], made[2800:]
    detector = KNN(k=50, normalize=normalize).fit_features(bank, labels_of(bank))
    want = detector.predict_features(queries)
    with torch.autocast("cpu", dtype=dtype):
        again = KNN(k=50, normalize=normalize).fit_features(bank, labels_of(bank))
        assert torch.equal(again.predict_features(queries), want)
        assert torch.equal(detector.predict_features(queries), want)


def test_products_of_fewer_digits_change_nothing(generator: torch.Generator) -> None:
    made = clusters(1000, generator)
    detector = KNN(k=50).fit_features(made[:900], labels_of(made[:900]))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = detector.predict_features(made[900:])
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, by_brute_force(made[:900], made[900:], 50, True), rtol=1e-9, atol=0)


def test_doubt_is_rare_in_ordinary_features(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing rows to the whole bank in float64 is for the few that need it."""
    counted: list[int] = []
    searched = NeighbourSearch._searched

    def counting(self: NeighbourSearch, rows: Tensor, *rest: object) -> Tensor:
        counted.append(len(rows))
        return searched(self, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(NeighbourSearch, "_searched", counting)
    made = clusters(5000, generator, width=64).relu()
    KNN(k=50).fit_features(made[:4000], labels_of(made[:4000])).predict_features(made[4000:])
    assert sum(counted) < 20


def test_the_bank_is_kept_as_it_comes(generator: torch.Generator, tmp_path: Path) -> None:
    narrow = torch.randn(50, 4, generator=generator).bfloat16()
    wide = torch.randn(50, 4, generator=generator, dtype=torch.float64) + 1e9
    for bank, dtype in ((narrow, torch.float32), (wide, torch.float64)):
        detector = KNN(k=3, normalize=False).fit_features(bank, labels_of(bank))
        assert detector._state["bank"].dtype == dtype
        assert torch.equal(detector._state["bank"], bank.to(dtype))
        want = detector.predict_features(bank)
        detector.save(tmp_path / "knn.safetensors")
        for restored in (KNN.load(tmp_path / "knn.safetensors"), copy.deepcopy(detector)):
            assert torch.equal(restored.predict_features(bank), want)
    other = torch.randn(60, 4, generator=generator)
    detector.fit_features(other, labels_of(other))  # the search is that of the new bank
    torch.testing.assert_close(detector.predict_features(other[:9]), by_brute_force(other, other[:9], 3, False))


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_that_are_not_finite_spoil_no_other(normalize: bool, generator: torch.Generator) -> None:
    made = clusters(200, generator)
    detector = KNN(k=2, normalize=normalize).fit_features(made[:150], labels_of(made[:150]))
    queries = made[150:].clone()
    queries[3, 1], queries[5, 0] = torch.nan, torch.inf
    found = detector.predict_features(queries)
    assert found[3].isnan()
    assert found[5].isnan() if normalize else found[5] == torch.inf
    rest = [i for i in range(50) if i not in (3, 5)]
    torch.testing.assert_close(found[rest], by_brute_force(made[:150], queries[rest], 2, normalize))
    assert detector.predict_features(queries[:0]).shape == (0,)
