"""Exact distance to the k-th nearest row of a bank, by inexact matrix products with error bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "BLOCK_NUMBERS",
    "DOUBTFUL_ROWS",
    "EXACT_NUMBERS",
    "KEPT_NUMBERS",
    "MIN_LENGTH",
    "ROWS_AT_ONCE",
    "SETTLED",
    "TILE_NUMBERS",
    "NeighbourSearch",
    "products_are_ieee",
]

TILE_NUMBERS = 1 << 22
"""Numbers of the bank per matrix product: 16 MiB in float32."""
BLOCK_NUMBERS = 1 << 17
"""Numbers of the bank cast to float64 at a time on the CPU, which fit into a level-2 cache."""
EXACT_NUMBERS = 1 << 22
"""Differences computed at a time: 32 MiB in float64."""
KEPT_NUMBERS = 1 << 26
"""Largest bank whose centred float32 copy is cached, 256 MiB; a larger bank is centred at each call."""
ROWS_AT_ONCE = 64
"""Queries measured at a time, all with the same number of candidates."""
DOUBTFUL_ROWS = 128
"""Queries compared to the whole bank in float64 at a time."""
MIN_LENGTH = 1e-12
"""Least divisor of rows, that of `torch.nn.functional.normalize`."""
SETTLED = 1e-10
"""Relative tolerance of squared distances: a row that may be nearer by less than this is not measured."""


@dataclass(frozen=True)
class _Candidates:
    """Bank rows `[n, m]` by ascending lower bound of their squared distance, in units of the scale."""

    index: Tensor
    """Indices in the bank, int64 `[n, m]`."""
    least: Tensor
    """Lower bounds, float64 `[n, m]`."""
    most: Tensor
    """Upper bounds, float64 `[n, m]`."""
    complete: bool
    """Whether the candidates are all rows of the bank."""


class NeighbourSearch:
    """Search for the Euclidean distance to the k-th nearest row of a bank, correct to ten digits for any features.

    Matrix products compute `|q|² - 2 q·c + |c|²` of all pairs fast, but with an error of the order of `|q| |c|` times
    the rounding of float32, which can reverse the order of rows that are much nearer to each other than to the origin.
    Therefore

    - the mean of the bank is subtracted first, in float64, which removes a common offset or a narrow cone before any
      product;
    - every product has an error bound for any order of summation (Higham 2002, section 3.1), which gives a lower and an
      upper bound of the squared distance; rows with the smallest lower bounds are candidates;
    - candidates that can be the k-th nearest are measured in float64, by differences;
    - if another row of the bank can be nearer, the query is compared to the whole bank in float64, and all rows that
      can be nearer are measured.

    Args:
        bank: `[N, d]`, float32 or float64, finite; not copied.
        normalize: Whether to divide rows of the bank by their length. Queries must be divided already.

    Example:
        >>> import torch
        >>> search = NeighbourSearch(torch.tensor([[1e6], [1e6 + 1], [1e6 + 5]]), normalize=False)
        >>> search.kth_distances(torch.tensor([[1e6 + 3]], dtype=torch.float64), k=2)
        tensor([2.], dtype=torch.float64)
    """

    def __init__(self, bank: Tensor, *, normalize: bool) -> None:
        self.bank = bank
        count, width = bank.shape
        self._tile = max(1, TILE_NUMBERS // width)
        self._block = max(1, BLOCK_NUMBERS // width) if bank.device.type == "cpu" else self._tile
        self._lengths: Tensor | None = None
        if normalize:
            lengths = [self._rows(rows).norm(dim=1) for rows in self._slices(0, count, self._block)]
            self._lengths = torch.cat(lengths).clamp_min_(MIN_LENGTH)
        self._mean = bank.new_zeros(width, dtype=torch.float64)
        for rows in self._slices(0, count, self._block):
            self._mean += self._rows(rows).sum(0) / count
        self._scale = 1.0
        norms = torch.cat([self._centred(rows).norm(dim=1) for rows in self._slices(0, count, self._block)])
        # Scaled to a length of at most 1, no square overflows, and squares that underflow are negligible. A power of
        # two scales without rounding.
        self._scale = 2.0 ** min(math.frexp(float(norms.max()))[1], 1000)
        self._norms = norms / self._scale
        self._kept: dict[int, Tensor] = {}

    def kth_distances(self, rows: Tensor, k: int) -> Tensor:
        """Return distances float64 `[n]` of finite rows float64 `[n, d]` to the k-th nearest bank row, 1 ≤ k ≤ N."""
        if len(rows) == 0:
            return rows.new_empty(0)
        query = (rows - self._mean) / self._scale
        # TF32 and bfloat16 products would void the error bounds of float32.
        dtype = torch.float32 if products_are_ieee(rows.device) else torch.float64
        with torch.autocast(rows.device.type, enabled=False):
            candidates = self._candidates(query, k, dtype)
            squares = self._measured(rows, candidates, k)
            if not candidates.complete:
                beyond = candidates.least[:, -1].clamp_min(0)
                # The negated comparison also selects NaN, the result of an overflow.
                doubtful = (~(squares * (1 - SETTLED) <= beyond)).nonzero().flatten()
                for some in torch.split(doubtful, DOUBTFUL_ROWS) if len(doubtful) > 0 else ():
                    squares[some] = self._searched(rows[some], query[some], squares[some], k)
        return squares.sqrt_().mul_(self._scale)

    def _candidates(self, query: Tensor, k: int, dtype: torch.dtype) -> _Candidates:
        count, width = self.bank.shape
        # A margin beyond k: rows near the k-th may swap places by rounding, and a full search costs far more.
        kept = min(k + max(16, k // 4), count)
        share, length = _error_share(width, dtype), query.norm(dim=1, keepdim=True)
        # One more column subtracts the error bound within the product, so that topk sees lower bounds.
        queries = torch.cat([query, share * length], 1).to(dtype)
        squares = (self._norms.square() * (1 - share)).to(dtype)
        least = queries.new_empty(len(query), 0)
        index = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for rows in self._slices(0, count, self._tile):
            part = self._factors(rows, dtype)
            products = torch.addmm(squares[rows], queries, part.mT, alpha=-2)
            smallest, at = products.topk(min(kept, len(part)), largest=False)
            least, index = torch.cat([least, smallest], 1), torch.cat([index, at + rows.start], 1)
            if rows.start > 0:
                least, at = least.topk(min(kept, least.shape[1]), largest=False)
                index = index.gather(1, at)
        norms = self._norms[index]
        # Products may lose numbers below the smallest normal one; the bounds allow for all of them.
        lost = 4 * (width + 16) * torch.finfo(dtype).tiny
        lower = least.double() + (length.square() - lost)
        upper = lower + 2 * (share * (norms.square() + 2 * length * norms) + lost)
        return _Candidates(index=index, least=lower, most=upper, complete=kept == count)

    def _measured(self, rows: Tensor, candidates: _Candidates, k: int) -> Tensor:
        """Return squared distances `[n]` to the k-th nearest candidates, in units of the scale."""
        least, most, count = candidates.least, candidates.most, candidates.index.shape[1]
        # Candidates before `first` are certainly nearer than the k-th nearest, those from `last` on certainly not: only
        # the ones between need exact distances.
        first = (most < least[:, k - 1 : k]).long().cumprod(1).sum(1)
        last = (least <= most.kthvalue(k, dim=1, keepdim=True).values).sum(1).clamp_min(k)
        width = last - first
        squares = rows.new_empty(len(rows))
        # Queries are grouped by their number of candidates, so that few masked distances are computed.
        order = width.argsort()
        widest = int(width.max())
        at_once = max(1, min(ROWS_AT_ONCE, EXACT_NUMBERS // (widest * rows.shape[1])))
        for some in torch.split(order, at_once):
            position = first[some, None] + torch.arange(int(width[some[-1]]), device=rows.device)
            index = candidates.index[some].gather(1, position.clamp_max(count - 1))
            exact = self._squares(rows[some, None], index).masked_fill_(position >= count, torch.inf)
            squares[some] = exact.sort(1).values.gather(1, (k - 1 - first[some])[:, None]).squeeze(1)
        return squares

    def _searched(self, rows: Tensor, query: Tensor, squares: Tensor, k: int) -> Tensor:
        """Return squared distances `[n]` to the k-th nearest bank row, given that k rows are as near as `squares`."""
        # float64 products have error bounds, too, which are so small that few rows pass the limit.
        share, length = _error_share(query.shape[1], torch.float64), query.norm(dim=1, keepdim=True)
        limit = squares[:, None] * (1 + SETTLED)
        of_query, exact = [], []
        for part in self._slices(0, len(self.bank), self._tile):
            norms = self._norms[part]
            least = length.square() + norms.square() - 2 * (query @ self._centred(part).mT)
            least -= share * (norms.square() + 2 * length * norms + length.square())
            near, at = (~(least > limit)).nonzero(as_tuple=True)
            for some, index in zip(
                *(torch.split(x, max(1, EXACT_NUMBERS // rows.shape[1])) for x in (near, at)), strict=True
            ):
                of_query.append(some)
                exact.append(self._squares(rows[some], index + part.start))
        # Sorted by distance and then stably by query, the k-th nearest of a query is k - 1 places after its first row.
        distance, owner = torch.cat(exact), torch.cat(of_query)
        distance, order = distance.sort()
        owner, grouped = owner[order].sort(stable=True)
        begin = torch.searchsorted(owner, torch.arange(len(rows), device=rows.device))
        return distance[grouped][begin + k - 1]

    def _squares(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return squared distances of rows `[..., d]` to bank rows `index`, in units of the scale."""
        away = self._rows(index).sub_(rows)
        return away.mul_(1 / self._scale).square_().sum(-1)

    def _factors(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return centred rows of the bank with their norm as the last column, `[n, d + 1]`."""
        if rows.start in self._kept and dtype == torch.float32:
            return self._kept[rows.start]
        width = self.bank.shape[1]
        factors = torch.empty(rows.stop - rows.start, width + 1, dtype=dtype, device=self.bank.device)
        for block in self._slices(rows.start, rows.stop, self._block):
            factors[block.start - rows.start : block.stop - rows.start, :width] = self._centred(block)
        factors[:, width] = self._norms[rows]
        if dtype == torch.float32 and self.bank.numel() <= KEPT_NUMBERS:
            self._kept[rows.start] = factors
        return factors

    def _rows(self, which: slice | Tensor) -> Tensor:
        """Return a float64 copy of rows of the bank, divided by their length if `normalize` is set."""
        rows = self.bank[which].to(torch.float64, copy=True)
        if self._lengths is not None:
            rows /= self._lengths[which].unsqueeze(-1)
        return rows

    def _centred(self, which: slice) -> Tensor:
        return self._rows(which).sub_(self._mean).mul_(1 / self._scale)

    @staticmethod
    def _slices(begin: int, end: int, size: int) -> Iterator[slice]:
        return (slice(at, min(at + size, end)) for at in range(begin, end, size))


def products_are_ieee(device: torch.device) -> bool:
    """Return whether float32 matrix products on a device have full precision, rather than TF32 or bfloat16."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision: str = backend.matmul.fp32_precision
    return precision in ("none", "ieee")


def _error_share(width: int, dtype: torch.dtype) -> float:
    """Return the error bound of `|c|² - 2 q·c` by a product in this dtype, as a fraction of `|c|² + 2 |q| |c|`.

    The d + 1 products and their sum in any order, the addition, and the rounding of factors and squares are fewer than
    d + 16 roundings. The factor 1.1 covers their compounding up to a fraction of 0.03; beyond that the bound is 1,
    which excludes nothing.
    """
    share = (width + 16) * torch.finfo(dtype).eps / 2
    return 1.1 * share if share < 0.03 else 1.0
