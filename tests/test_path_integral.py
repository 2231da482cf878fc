from __future__ import annotations

import numpy as np
import pytest

from xr_avocado.model.path_integral import Ways, integrate


class Bends(Ways):
    """Ways of two parts: one straight, of slope 1, and one of ReLUs, each with a bend at a point and a slope beyond it."""

    def __init__(self, bends: np.ndarray, slopes: np.ndarray) -> None:
        self.bends, self.of_bend, self.n_ways = bends, slopes, len(bends)
        self.points: list[float] = []
        self.valued = 0

    def values(self, way, point):
        self.valued += len(way)
        return point + (self.of_bend[way] * np.maximum(point[:, None] - self.bends[way], 0)).sum(1)

    def slopes(self, way, point):
        self.points += point.tolist()
        bent = (self.of_bend[way] * (point[:, None] > self.bends[way])).sum(1)
        straight = point + (self.of_bend[way] * np.maximum(point[:, None] - self.bends[way], 0)).sum(1)
        return straight, np.stack([np.ones(len(way)), bent], 1)

    @property
    def truth(self) -> np.ndarray:
        return np.stack([np.ones(self.n_ways), (self.of_bend * (1 - self.bends)).sum(1)], 1)

    @property
    def ends(self) -> np.ndarray:
        return np.stack([np.zeros(self.n_ways), self.truth.sum(1)], 1)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_bend_is_closed_in_on(steps):
    ways = Bends(np.array([[0.7123], [0.25], [2.0]]), np.array([[8.0], [8.0], [8.0]]))
    ways.bends = np.minimum(ways.bends, 1)  # the last has none
    parts = integrate(ways, ways.ends, steps=steps, allowed=np.full(3, 4e-3))
    np.testing.assert_allclose(parts, ways.truth, atol=4e-3)
    assert len(ways.points) <= 3 * 4 + 2 * 10, "as dense everywhere it would take a thousand"


def test_parts_are_right_where_errors_of_many_bends_cancel():
    random = np.random.default_rng(0)
    ways = Bends(random.random((50, 30)), random.normal(size=(50, 30)))
    parts = integrate(ways, ways.ends, steps=4, allowed=np.full(50, 1e-3))
    np.testing.assert_allclose(parts.sum(1), ways.truth.sum(1), atol=1e-3)
    np.testing.assert_allclose(parts, ways.truth, atol=1e-3)


def test_ways_have_errors_of_their_own():
    ways = Bends(np.full((2, 1), 0.7123), np.full((2, 1), 8.0))
    parts = integrate(ways, ways.ends, steps=2, allowed=np.array([np.inf, 1e-2]))
    assert abs(parts - ways.truth)[0, 1] > 0.1 and abs(parts - ways.truth)[1, 1] < 1e-2


@pytest.mark.parametrize("steps", [1, 5])
def test_without_a_limit_points_are_equal_and_nothing_else_is_asked(steps):
    ways = Bends(np.array([[0.5]]), np.array([[2.0]]))
    integrate(ways, ways.ends, steps=steps, allowed=np.array([np.inf]))
    np.testing.assert_allclose(ways.points, (np.arange(steps) + 0.5) / steps)
    assert not ways.valued
