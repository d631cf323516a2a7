"""The exact distance to the k-th nearest row of a bank, from products that are only nearly right."""

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
"""Bank features compared at a time: 16 MiB in float32."""
BLOCK_NUMBERS = 1 << 17
"""Bank features brought to float64 at a time on the CPU: a level-2 cache holds them."""
EXACT_NUMBERS = 1 << 22
"""Differences taken at a time: 32 MiB in float64."""
KEPT_NUMBERS = 1 << 26
"""Bank features of which a centred copy for the products is kept, 256 MiB; of a larger bank it is made at each call."""
ROWS_AT_ONCE = 64
"""Rows of which the same number of candidates is measured."""
DOUBTFUL_ROWS = 128
"""Rows compared to the whole bank in float64 at a time."""
MIN_LENGTH = 1e-12
"""Rows are divided by no less, as `torch.nn.functional.normalize` does it."""
SETTLED = 1e-10
"""Share of the squared distance by which a row that was not measured may be nearer."""


@dataclass(frozen=True)
class _Candidates:
    """Bank rows `[n, m]` in the order of the least that their squared distance can be, in units of the scale."""

    index: Tensor
    least: Tensor
    most: Tensor
    complete: bool
    """Flag: these are all the rows of the bank."""


class NeighbourSearch:
    """Euclidean distances to the k-th nearest row of a bank, to ten digits for any features.

    Matrix products give `|q|² - 2 q·c + |c|²` of all pairs quickly, but with an error of the order of `|q| |c|` times
    the rounding of float32: rows that are much nearer to each other than to the origin are taken in a wrong order. So

    - the bank's mean is subtracted first, in float64: a common offset, or a narrow cone, is gone before anything is
      multiplied;
    - every product comes with the bound of its error that holds for any order of summation (Higham 2002, section 3.1),
      and so with the least and the most that the squared distance can be; those with the smallest least are candidates;
    - candidates that can be the k-th nearest are measured in float64, by differences;
    - a query to which some other row of the bank can be nearer is compared to the whole bank in float64, and all rows
      that can be nearer are measured.

    Args:
        bank: `[N, d]`, float32 or float64, finite; not copied.
        normalize: Divide rows of the bank by their length. Queries come divided.

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
        # Of length 1 at most, so that no square overflows, and none underflows that makes a difference. A power of two,
        # which rounds nothing.
        self._scale = 2.0 ** min(math.frexp(float(norms.max()))[1], 1000)
        self._norms = norms / self._scale
        self._kept: dict[int, Tensor] = {}

    def kth_distances(self, rows: Tensor, k: int) -> Tensor:
        """Distances float64 `[n]` of finite rows float64 `[n, d]` to the k-th nearest of the bank, k from 1 to N."""
        if len(rows) == 0:
            return rows.new_empty(0)
        query = (rows - self._mean) / self._scale
        dtype = torch.float32 if products_are_ieee(rows.device) else torch.float64
        with torch.autocast(rows.device.type, enabled=False):
            candidates = self._candidates(query, k, dtype)
            squares = self._measured(rows, candidates, k)
            if not candidates.complete:
                beyond = candidates.least[:, -1].clamp_min(0)
                # Not a number, where something overflowed, is in doubt, too.
                doubtful = (~(squares * (1 - SETTLED) <= beyond)).nonzero().flatten()
                for some in torch.split(doubtful, DOUBTFUL_ROWS) if len(doubtful) > 0 else ():
                    squares[some] = self._searched(rows[some], query[some], squares[some], k)
        return squares.sqrt_().mul_(self._scale)

    def _candidates(self, query: Tensor, k: int, dtype: torch.dtype) -> _Candidates:
        count, width = self.bank.shape
        wanted = min(k + max(16, k // 4), count)
        share, length = _error_share(width, dtype), query.norm(dim=1, keepdim=True)
        # One more column takes the bound of the error off each product.
        queries = torch.cat([query, share * length], 1).to(dtype)
        squares = (self._norms.square() * (1 - share)).to(dtype)
        least = queries.new_empty(len(query), 0)
        index = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for rows in self._slices(0, count, self._tile):
            part = self._factors(rows, dtype)
            products = torch.addmm(squares[rows], queries, part.mT, alpha=-2)
            found, at = products.topk(min(wanted, len(part)), largest=False)
            least, index = torch.cat([least, found], 1), torch.cat([index, at + rows.start], 1)
            if rows.start > 0:
                least, at = least.topk(min(wanted, least.shape[1]), largest=False)
                index = index.gather(1, at)
        norms = self._norms[index]
        # What is too small for the dtype counts as 0.
        lost = 4 * (width + 16) * torch.finfo(dtype).tiny
        lower = least.double() + (length.square() - lost)
        upper = lower + 2 * (share * (norms.square() + 2 * length * norms) + lost)
        return _Candidates(index=index, least=lower, most=upper, complete=wanted == count)

    def _measured(self, rows: Tensor, candidates: _Candidates, k: int) -> Tensor:
        """Squared distances `[n]` to the k-th nearest candidates, in units of the scale."""
        least, most, wanted = candidates.least, candidates.most, candidates.index.shape[1]
        # Those before the first that can be as far as the k-th nearest are certainly nearer.
        first = (most < least[:, k - 1 : k]).long().cumprod(1).sum(1)
        last = (least <= most.kthvalue(k, dim=1, keepdim=True).values).sum(1).clamp_min(k)
        width = last - first
        squares = rows.new_empty(len(rows))
        order = width.argsort()
        widest = int(width.max())
        at_once = max(1, min(ROWS_AT_ONCE, EXACT_NUMBERS // (widest * rows.shape[1])))
        for some in torch.split(order, at_once):
            position = first[some, None] + torch.arange(int(width[some[-1]]), device=rows.device)
            index = candidates.index[some].gather(1, position.clamp_max(wanted - 1))
            exact = self._squares(rows[some, None], index).masked_fill_(position >= wanted, torch.inf)
            squares[some] = exact.sort(1).values.gather(1, (k - 1 - first[some])[:, None]).squeeze(1)
        return squares

    def _searched(self, rows: Tensor, query: Tensor, squares: Tensor, k: int) -> Tensor:
        """`_measured` of all rows of the bank that can be as near as `squares`, which k of them are."""
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
        distance, owner = torch.cat(exact), torch.cat(of_query)
        distance, order = distance.sort()
        owner, grouped = owner[order].sort(stable=True)
        begin = torch.searchsorted(owner, torch.arange(len(rows), device=rows.device))
        return distance[grouped][begin + k - 1]

    def _squares(self, rows: Tensor, index: Tensor) -> Tensor:
        """Squared distances of rows `[..., d]` to those of the bank, in units of the scale."""
        away = self._rows(index).sub_(rows)
        return away.mul_(1 / self._scale).square_().sum(-1)

    def _factors(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Centred rows of the bank with their norm behind them, `[n, d + 1]`."""
        if rows.start in self._kept and dtype == torch.float32:
            return self._kept[rows.start]
        width = self.bank.shape[1]
        made = torch.empty(rows.stop - rows.start, width + 1, dtype=dtype, device=self.bank.device)
        for block in self._slices(rows.start, rows.stop, self._block):
            made[block.start - rows.start : block.stop - rows.start, :width] = self._centred(block)
        made[:, width] = self._norms[rows]
        if dtype == torch.float32 and self.bank.numel() <= KEPT_NUMBERS:
            self._kept[rows.start] = made
        return made

    def _rows(self, which: slice | Tensor) -> Tensor:
        """Rows of the bank in float64, divided by their length where asked for; a copy."""
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
    """Tell whether float32 matrix products on a device keep all digits: the user may allow TF32 or bfloat16 instead."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision: str = backend.matmul.fp32_precision
    return precision in ("none", "ieee")


def _error_share(width: int, dtype: torch.dtype) -> float:
    """The share of `|c|² + 2 |q| |c|` that a squared distance less |q|², by a product in this dtype, can be off by.

    d + 1 products and their sum in any order, the addition, and the rounding of factors and squares: d + 16 roundings
    are more than those. The tenth added is more than what they compound to; of too many to say that, nothing is known.
    """
    share = (width + 16) * torch.finfo(dtype).eps / 2
    return 1.1 * share if share < 0.03 else 1.0
