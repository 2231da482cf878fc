"""How figures look: colors, names of layers, quiet axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from xr_avocado.cube import AVERAGE, IMPUTED, SIGNAL, CubeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "FAINT", "INK", "NAMES", "OTHER_COLORS", "check_table", "colors_of", "new_axes", "quiet"]

# The palette of Okabe and Ito, whose colors stay apart for color-blind readers.
COLORS = {SIGNAL: "#0072B2", IMPUTED: "#D55E00", AVERAGE: "#009E73"}
OTHER_COLORS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
NAMES = {SIGNAL: "observed", AVERAGE: "average activity"}
INK, FAINT = "#333333", "#E6E6E6"


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Give each layer a color, those known by name their own."""
    others = [name for name in names if name not in COLORS]
    return {name: COLORS[name] if name in COLORS else OTHER_COLORS[others.index(name) % 4] for name in names}


def check_table(table: Any, columns: Iterable[str], verb: str) -> None:
    """Raise where what is to be drawn is no frame with these columns, as a verb returns it."""
    if missing := [name for name in columns if name not in getattr(table, "columns", ())]:
        raise CubeError(f"what is to be drawn has no column {', '.join(missing)}; give the frame that {verb} returns")


def new_axes(size: tuple[float, float]) -> Axes:
    """Make a figure of one axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def quiet(ax: Axes) -> None:
    """Draw no more of an axes than is read."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelcolor=INK)
