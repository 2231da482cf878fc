"""Integrals of slopes along straight ways, with more points where a way bends, for many ways at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

__all__ = ["Ways", "integrate"]

POINTS = 512
"""Stretches of a way, at most."""
MOST = 0.25
"""Stretches with at least this share of the largest error of their way are halved together with that."""
CANCELLED = 8.0
"""What errors of stretches may come to where none makes up for another, in what the error of their way may be."""


class Ways(ABC):
    """Straight ways, numbered, from a baseline (point 0) to what was read (point 1), each with a value at every point.

    What changes along a way is made of parts, whose slopes add up to that of the value.
    """

    n_ways: int

    @abstractmethod
    def values(self, way: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Value of each way at a point of it."""

    @abstractmethod
    def slopes(self, way: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values likewise, and the slope of each part of the way there: n, and n x parts."""


def integrate(ways: Ways, ends: np.ndarray, *, steps: int, allowed: np.ndarray) -> np.ndarray:
    """Integrate the slope of each part along its way, by the midpoint rule: ways x parts.

    A network of ReLUs is straight but for some bends, and where it is straight the rule is exact: the slope in the middle of a stretch
    gives the difference of the values at its ends. So the stretches for which it does that worst are halved, and the others are left
    alone: a bend is closed in on, where equal steps would have to be as short as that along the whole way. Halving ends where the errors of
    a way's stretches, which partly cancel, add up to what is allowed, and without cancelling to no more than eight times that, since
    errors that cancel in the sum do not do so part by part.

    Parameters
    ----------
    ways
        What to integrate along.
    ends
        Value of each way at its points 0 and 1: ways x 2.
    steps
        Stretches of equal length to begin with.
    allowed
        Error that each way may have; infinite for nothing to be halved.
    """
    every, edges = np.arange(ways.n_ways), np.arange(steps) / steps
    way, start = np.repeat(every, steps), np.tile(edges, ways.n_ways)
    left = np.repeat(ends[:, :1], steps, axis=1)
    if np.isfinite(allowed).any():
        left[:, 1:] = ways.values(np.repeat(every, steps - 1), np.tile(edges[1:], ways.n_ways)).reshape(
            ways.n_ways, steps - 1
        )
    right = np.concatenate([left[:, 1:], ends[:, 1:]], axis=1)
    known = _Stretches.of(ways, way, start, np.full(len(way), 1 / steps), left.ravel(), right.ravel())
    while (bent := known.bent(allowed)).any():
        known = _Stretches(*map(np.concatenate, zip(known.at(~bent), known.at(bent).halves(ways), strict=True)))
    return np.stack([np.bincount(known.way, of, ways.n_ways) for of in known.parts.T], axis=1).astype(np.float32)


class _Stretches(NamedTuple):
    """Stretches of ways: which way, from where, how long; values at both ends and in the middle; what each part changes."""

    way: np.ndarray
    start: np.ndarray
    width: np.ndarray
    left: np.ndarray
    middle: np.ndarray
    right: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(
        cls, ways: Ways, way: np.ndarray, start: np.ndarray, width: np.ndarray, left: np.ndarray, right: np.ndarray
    ) -> _Stretches:
        middle, slopes = ways.slopes(way, start + width / 2)
        return cls(way, start, width, left, middle, right, slopes * width[:, None].astype(np.float32))

    def at(self, chosen: np.ndarray) -> _Stretches:
        return _Stretches(*(of[chosen] for of in self))

    def bent(self, allowed: np.ndarray) -> np.ndarray:
        """Whether each is to be halved: where a way has too much error, those with the most of it."""
        n, error = len(allowed), self.right - self.left - self.parts.sum(1)
        size, most = np.abs(error), np.zeros(n)
        np.maximum.at(most, self.way, size)
        wrong = np.abs(np.bincount(self.way, error, n)) > allowed
        wrong |= np.bincount(self.way, size, n) > CANCELLED * allowed
        wrong &= np.bincount(self.way, minlength=n) < POINTS
        return wrong[self.way] & (size >= MOST * most[self.way])

    def halves(self, ways: Ways) -> _Stretches:
        way, width = np.tile(self.way, 2), np.tile(self.width / 2, 2)
        start = np.concatenate([self.start, self.start + self.width / 2])
        left, right = np.concatenate([self.left, self.middle]), np.concatenate([self.middle, self.right])
        return self.of(ways, way, start, width, left, right)
