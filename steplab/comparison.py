"""The paper's numbers and results of long runs, stored in `data/reference`; ours set beside the paper's.

>>> beside(study.summary(table, "S-PT"), paper(3), {"object": "EPIC-Object", "action": "UCF101-24"})
"""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "reference"  # long runs, see data/README.md
DASH = "\N{EN DASH}"  # where one side has no number
_FAMILIES = {"r2plus1d": "R(2+1)D", "r2plus1d_18": "R(2+1)D", "vgg16lstm": "VGG16LSTM"}  # by end of the name
_METHODS = {
    "step": "STEP",
    "ep3d": "EP-3D",
    "ep3d-evenly": "EP-3D-Evenly",
    **{f"ep3d-gaussian-{k}": f"EP-3D (Δt={k})" for k in (1, 2, 3)},
    "grad-cam": "Grad-CAM",
    "saliency-tubes": "Saliency Tubes",
    "eb-r": "EB-R",
}


class TableError(ValueError):
    """A table or notebook that is not there, or a parameter it does not have or not with such a value."""


def reference(name: str) -> pd.DataFrame:
    """A stored table of `data/reference`; `data/README.md` says which long run made it.

    Raises:
        TableError: there is none of that name.
    """
    path = REFERENCE / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in REFERENCE.glob("*.csv")))
        raise TableError(f"name: got {name!r}, expected one of {known}")
    return pd.read_csv(path)


def paper(table: int) -> pd.DataFrame:
    """The paper's Table 1 to 5 (Li et al., WACV 2021), one number a row.

    Columns: `table`, `dataset` (UCF101-24, EPIC-Object or EPIC-Action), `network` ("R(2+1)D" or
    "VGG16LSTM"), `method` ("" in Tables 1 and 2), `metric` and `value`, always from 0 to 1: accuracy (1),
    smallest ratio (2), the shares of hits S-PT (3, 4) and T-PT (5). What the paper leaves open has no row.

    Raises:
        TableError: no such table.
    """
    known = pd.read_csv(REFERENCE / "paper.csv", keep_default_na=False)
    if table not in set(known["table"]):
        raise TableError(f"table: got {table!r}, expected 1 to 5")
    return known.loc[known["table"] == table, :].reset_index(drop=True)


def beside(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    datasets: Mapping[str, str] | None = None,
    rows: str = "method",
) -> pd.DataFrame:
    """Our numbers and the paper's in neighbouring columns, as text: "0.42 (0.31 .. 0.53)" beside "0.567".

    Whatever either side has gets its row and column; what the other lacks is an en dash there.

    Args:
        ours: columns `dataset`, `network`, `mean`, the one that `rows` names and, where there are intervals,
            `low` and `high`. Networks go by family, told by the end of the name; two of one family keep
            their names. `explain`'s name of a method and the paper's are taken as the same.
            `study.summary` gives such a table.
        theirs: from `paper`; one metric, or `rows="metric"`.
        datasets: which of the paper's data sets stands beside which of ours, such as {"action": "UCF101-24"}.
        rows: the column whose values become rows: "method", or "metric" for Tables 1 and 2.

    Raises:
        TableError: a missing column, or two numbers for one place.
    """
    for side, frame, number in (("ours", ours, "mean"), ("theirs", theirs, "value")):
        if missing := {rows, "dataset", "network", number} - set(frame.columns):
            raise TableError(f"{side}: got columns {[*frame.columns]}, expected also {sorted(missing)}")
    mine, its = dict.fromkeys(ours["dataset"]), dict.fromkeys(theirs["dataset"])
    same = {d: d for d in mine if d in its} | dict(datasets or {})
    pairs = [*same.items(), *((d, "") for d in mine if d not in same)]
    pairs += [("", d) for d in its if d not in same.values()]
    cells: dict[tuple[Any, ...], dict[Hashable, str]] = {}
    order: dict[Hashable, None] = {}  # the paper's rows first, as it has them
    for side, frame in (("paper", theirs), ("ours", ours)):
        families = {d: _families(set(part["network"])) for d, part in frame.groupby("dataset")}
        for line in frame.to_dict("records"):
            row, dataset = _METHODS.get(line[rows], line[rows]), line["dataset"]
            pair = next(p for p in pairs if dataset == p[side == "paper"])
            column = cells.setdefault((pair, families[dataset][line["network"]]), {})
            if (side, row) in column:
                where = f"{row}, {dataset}, {line['network']}"
                raise TableError(f"{side}: got two numbers for {where}, expected one")
            order[row] = None
            column[side, row] = f"{line['value']:.3f}" if side == "paper" else words(line)
    networks = [*dict.fromkeys([*_FAMILIES.values(), *(network for _, network in cells)])]
    keys = sorted(cells, key=lambda key: (pairs.index(key[0]), networks.index(key[1])))
    sides = ("ours", "paper")
    header = [(" / ".join(filter(None, pair)), network, side) for pair, network in keys for side in sides]
    body = [[cells[key].get((side, row), DASH) for key in keys for side in sides] for row in order]
    columns = pd.MultiIndex.from_tuples(header, names=["data set (ours / paper)", "network", ""])
    return pd.DataFrame(body, pd.Index([*order], name=rows), columns)


def joined(ours: pd.DataFrame, theirs: pd.DataFrame, datasets: Mapping[str, str]) -> pd.DataFrame:
    """`ours` with a column `paper` more, the paper's number where it has one: what `figures.panels` draws.

    Arguments as for `beside`. Networks go by family in the result, methods keep our names.
    """
    names = theirs[["dataset", "network", "method"]].itertuples(index=False, name=None)
    known = dict(zip(names, theirs["value"], strict=True))
    parts = []
    for dataset, part in ours.groupby("dataset", sort=False):
        families = _families(set(part["network"]))
        family = [families[n] for n in part["network"]]
        there = datasets.get(str(dataset), dataset)
        its = [
            known.get((there, n, _METHODS.get(m, m)), math.nan)
            for n, m in zip(family, part["method"], strict=True)
        ]
        parts.append(part.assign(network=family, paper=its))
    return pd.concat(parts, ignore_index=True)


def _families(names: set[str]) -> dict[str, str]:
    """Each network's family, or its own name if it has none or shares it."""
    found = {n: next((f for end, f in _FAMILIES.items() if n.lower().endswith(end)), n) for n in names}
    return {n: n if [*found.values()].count(f) > 1 else f for n, f in found.items()}


def words(line: Mapping[Any, Any]) -> str:
    """ "0.42 (0.31 .. 0.53)", of a row's mean, low and high."""
    mean, low, high = (line.get(name, math.nan) for name in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return DASH
    return f"{mean:.2f}" + (f" ({low:.2f} .. {high:.2f})" if math.isfinite(low + high) else "")
