"""Draws the picture of a run: for each scenario what the others take, as a multiple of the reference.
Runs in the harness's environment, because it needs matplotlib: chart.py RUN.json PICTURE.svg"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

# Told apart by form as well as by colour.
MARKS = "os^vDPX*h"


def main(run: Path, picture: Path) -> None:
    results = [result for result in json.loads(run.read_text())["results"] if points(result)]
    names = list(dict.fromkeys(entrant["name"] for result in results for entrant in result["entrants"]))
    # Ids in the file are numbered from here, so that equal runs draw equal pictures.
    matplotlib.rcParams["svg.hashsalt"] = "guideway"
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.36 * len(results)), layout="constrained")
    for number, name in enumerate(names):
        places = [(point, row) for row, result in enumerate(results) for who, point in points(result) if who == name]
        if places:
            across, down = zip(*places, strict=True)
            axes.plot(across, down, MARKS[number % len(MARKS)], label=name, alpha=0.8, markersize=6)
    reference = results[0]["reference"] if results else ""
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.set_yticks(range(len(results)), [f"{result['scenario']} ({result['figure']})" for result in results])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"median, as a multiple of {reference}'s, or of the least where that has none; more is dearer")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=5, frameon=False)
    figure.savefig(picture, metadata={"Date": None})


def points(result: dict[str, Any]) -> list[tuple[str, float]]:
    """What each balancer takes in one scenario; relative to the cheapest where the reference has no figure."""
    medians = {entrant["name"]: entrant["figure"]["median"] for entrant in result["entrants"] if entrant["figure"]}
    medians = {name: median for name, median in medians.items() if median > 0 and math.isfinite(median)}
    if not medians:
        return []
    one = medians.get(result["reference"], min(medians.values()))
    return [(name, median / one) for name, median in medians.items()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
