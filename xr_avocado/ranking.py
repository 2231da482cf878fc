"""Which of several methods is best overall: the rank rule of the ENCODE Imputation Challenge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from xr_avocado.cube import ASSAY, CELLTYPE
from xr_avocado.measures import MEASURES

__all__ = ["CHALLENGE", "rank"]

CHALLENGE = ("mse", "gwcorr", "gwspear", "mseprom", "msegene", "mseenh", "msevar", "mse1obs", "mse1imp")
"""The challenge's nine measures."""


def rank(table: pd.DataFrame, *, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Rank methods over all tracks of a table of scores, as the ENCODE Imputation Challenge did.

    For each track and bootstrap, the methods that have it are ranked by each measure; a method's score is the sum over
    measures of log(rank / (T + 1)), T methods in all, and the methods are ranked by it. A track contributes min(0.5,
    rank / (T + 1)) to a method's total, and 0.5 where the method lacks it. Methods are ranked by their total in each
    bootstrap, and the final rank is the second best over the bootstraps, or the only one. Equal values share their
    average rank.

    Parameters
    ----------
    table
        What `evaluate` returned, for several methods and as a rule with ``bootstraps=10``.
    measures
        Measures to use; by default those of the challenge's nine that the table has and that are defined anywhere in
        it. One that is NaN for a method ranks last.

    Returns
    -------
    A frame with one row a method, best first: ``rank``; ``score``, the mean contribution over tracks and bootstraps, lower being
    better; its lowest and highest value over the bootstraps.

    Raises
    ------
    ValueError
        Where there is nothing to rank, or a method has several rows for a track.

    References
    ----------
    Schreiber et al. 2023, doi:10.1186/s13059-023-02915-y.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> table = cube.avocado.evaluate(methods=["average", "ridge"], measures=["mse", "gwcorr"], progress=False)
    >>> rank(table)["rank"].tolist()
    [1.0, 2.0]
    """
    table = table.assign(bootstrap=table["bootstrap"] if "bootstrap" in table else 0)
    used = _measures(table, measures)
    sample = [CELLTYPE, ASSAY, "bootstrap"]
    if table.duplicated([*sample, "method"]).any():
        raise ValueError("a method has several rows for a track: rank one table of one space and convention at a time")
    log_ranks = pd.Series(0.0, index=table.index)
    by_track = table.groupby(sample, sort=False)
    size = by_track["method"].transform("size")
    for name in used:
        places = by_track[name].rank(ascending=name.startswith("mse"), na_option="bottom")
        log_ranks += np.log(places / (size + 1))
    # Sums of logs in another order differ in their last bits, which must not break a tie.
    place = log_ranks.round(9).groupby([table[key] for key in sample], sort=False).rank()
    contribution = (place / (size + 1)).clip(upper=0.5)
    wide = (
        contribution.groupby([table["bootstrap"], table[CELLTYPE], table[ASSAY], table["method"]])
        .first()
        .unstack("method")
    )
    totals = wide.fillna(0.5).groupby("bootstrap").mean()
    ranks = np.sort(totals.round(9).rank(axis=1).to_numpy(), axis=0)
    final = pd.DataFrame(
        {
            "rank": ranks[min(1, len(ranks) - 1)],
            "score": totals.mean().to_numpy(),
            "lowest": totals.min().to_numpy(),
            "highest": totals.max().to_numpy(),
        },
        index=totals.columns,
    )
    return final.sort_values(["rank", "score"], kind="stable")


def _measures(table: pd.DataFrame, measures: Sequence[str] | None) -> list[str]:
    if measures is None:
        used = [name for name in CHALLENGE if name in table and table[name].notna().any()]
    else:
        used = list(measures)
    if unknown := [name for name in used if name not in MEASURES or name not in table]:
        raise ValueError(f"the table has no measure {', '.join(map(repr, unknown))}")
    if not used or table.empty:
        raise ValueError(
            "there is nothing to rank: the table has no rows, or none of the challenge's measures is defined in it"
        )
    return used
