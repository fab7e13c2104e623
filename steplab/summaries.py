"""What a study's table says: means over clips, paired differences, orderings, all with intervals.

>>> summary(study.table(), "S-PT")
>>> orderings(table, "S-PT", [("STEP", "EP-3D")])     # does it hold here?
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from .comparison import DASH, words
from .metrics import compare as paired
from .metrics import interval
from .names import pick


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric's mean over clips (of each, the mean over seeds) with its bootstrap interval of 95 %.

    Args:
        table: as `Study.table()` gives it, several of them one below the other, or read from a CSV file.

    Returns:
        columns dataset, network, method, mean, low, high, clips; NaN where no clip has a value.

    Raises:
        ValueError: no such metric in the table.
    """
    rows = []
    for where, values in _per_clip(table, metric).items():
        known = values.dropna()
        rows.append((*where, *(interval(known) if len(known) else (np.nan,) * 3), len(known)))
    return pd.DataFrame(rows, columns=["dataset", "network", "method", "mean", "low", "high", "clips"])


def pivot(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`summary` as the paper prints its tables: a row a method, a column a data set and network, as text."""
    found = summary(table, metric)
    found["shown"] = [words(line) for line in found.to_dict("records")]
    wide = found.pivot(index="method", columns=["dataset", "network"], values="shown").fillna(DASH)
    order = [[*found["method"].unique()], list(dict.fromkeys(zip(found.dataset, found.network, strict=True)))]
    return wide.reindex(index=order[0], columns=pd.MultiIndex.from_tuples(order[1], names=wide.columns.names))


def compare(table: pd.DataFrame, metric: str, a: str, b: str) -> pd.DataFrame:
    """Method `a` less method `b`, clip by clip: mean and its interval, one row per dataset and network.

    Columns: dataset, network, difference, low, high, clips (those that both have).

    Raises:
        ValueError: no such metric or method in the table.
    """
    values = _per_clip(table, metric)
    for method in (a, b):
        pick("method", method, dict.fromkeys(name for _, _, name in values))
    rows = []
    for where in dict.fromkeys(key[:2] for key in values):
        empty = pd.Series(dtype=float)
        both = pd.concat([values.get((*where, m), empty) for m in (a, b)], axis=1, join="inner").dropna()
        found = paired(both.iloc[:, 0], both.iloc[:, 1]) if len(both) else (np.nan,) * 3
        rows.append((*where, *found, len(both)))
    return pd.DataFrame(rows, columns=["dataset", "network", "difference", "low", "high", "clips"])


def orderings(table: pd.DataFrame, metric: str, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Which of the orderings "a > b" hold: `compare` of each pair, with a verdict.

    Verdict: "holds" if the whole interval of a - b lies above 0, "fails" if below, else "open"; also "open"
    with fewer than two clips, which have no interval.

    Raises:
        ValueError: as `compare`.
    """
    frames = []
    for a, b in pairs:
        frame = compare(table, metric, a, b)
        frame.insert(0, "ordering", f"{a} > {b}")
        holds, fails = ((frame.clips > 1) & bound for bound in (frame.low > 0, frame.high < 0))
        frame["verdict"] = np.select([holds, fails], ["holds", "fails"], "open")
        frames.append(frame)
    if not frames:
        raise ValueError("pairs: got none, expected at least one")
    return pd.concat(frames, ignore_index=True)


def _per_clip(table: pd.DataFrame, metric: str) -> dict[tuple[str, str, str], pd.Series]:
    """Mean over seeds of each clip, for each (dataset, network, method) in the table's order."""
    rows = table[table.metric == metric]
    pick("metric", metric, table.metric.unique())
    groups = rows.groupby(["dataset", "network", "method"], sort=False)
    return {tuple(key): group.groupby("clip", sort=False)["value"].mean() for key, group in groups}  # type: ignore[arg-type]
