"""Work in pieces, which are halved where a device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["Halving"]

T = TypeVar("T")

logger = logging.getLogger("xr_avocado")


class Halving:
    """Remembers into how many parts pieces are divided, so that what failed once is not tried again, and is told of once."""

    def __init__(self) -> None:
        self.parts = 1

    def run(self, n: int, piece: int, compute: Callable[[slice], object]) -> None:
        """Compute ``n`` things in order, a piece at a time at most; what was computed before memory ran out is kept.

        Raises
        ------
        torch.OutOfMemoryError
            Where not even one of them fits.
        """
        first = 0
        while first < n:
            at = slice(first, min(n, first + max(1, piece // self.parts)))
            if self._fits(lambda at=at: compute(at), last=at.stop - first == 1):  # type: ignore[misc]
                first = at.stop

    def whole(self, n: int, piece: int, compute: Callable[[int], T]) -> T:
        """Compute ``n`` things with pieces of a size that ``compute`` is given, all of them again where memory runs out."""
        done: list[T] = []
        while not done:
            size = max(1, min(n, piece // self.parts))
            self._fits(lambda size=size: done.append(compute(size)), last=size == 1)  # type: ignore[misc]
        return done[0]

    def _fits(self, compute: Callable[[], object], *, last: bool) -> bool:
        try:
            compute()
            return True
        except torch.cuda.OutOfMemoryError:
            if last:
                raise
        # Past the except clause, which holds on to what was allocated.
        if self.parts == 1:
            logger.warning("out of memory on the device: what is computed at once is halved from here on")
        self.parts *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
