"""Turns samples into medians, ratios and one table. Ratios are taken inside each round and only then
summarised, because what disturbs a shared machine disturbs all balancers of a round alike."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import MemorySample, Sample
from peers import ENVOY, FLOOR
from scenarios import Figure, MemoryScenario, Scenario

RESULTS = Path(__file__).parent.parent / "results"

# Above this, caches and the scheduler are shared with strangers often enough to move the ratios.
DISTURBED_LIMIT = 0.05

# Of an error with the end of a log, what still reads as a line below a table.
REASON_LENGTH = 300


@dataclass(frozen=True)
class Spread:
    """Median with the extremes it lies between."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)}..{_short(self.high)})"


@dataclass(frozen=True)
class Entrant:
    """One balancer in one scenario: its samples in the order of the rounds, or why it has none."""

    name: str
    version: str
    samples: Sequence[Sample | MemorySample] = ()
    pss_kib: int | None = None
    absent: str | None = None
    # Whether it should have taken part: it broke down, or it is Guideway.
    missed: bool = False

    @property
    def valid(self) -> bool:
        return not self.missed and all(sample.valid for sample in self.samples)

    @property
    def failed(self) -> int:
        return sum(sample.failed for sample in self.samples)

    def median(self, field: Callable[[Any], float | None]) -> float | None:
        values = [value for sample in self.samples if (value := field(sample)) is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Result:
    """All balancers in one scenario; `reference` is the one the ratios are about."""

    scenario: Scenario | MemoryScenario
    reference: str
    entrants: list[Entrant]

    @property
    def valid(self) -> bool:
        return all(entrant.valid for entrant in self.entrants)

    @property
    def disturbed(self) -> float:
        """The largest median share of the balancers' CPU that others used."""
        medians = (entrant.median(lambda it: getattr(it, "disturbed", None)) for entrant in self.entrants)
        return max((median for median in medians if median is not None), default=0.0)

    def entrant(self, name: str) -> Entrant | None:
        return next((entrant for entrant in self.entrants if entrant.name == name), None)

    def figure(self, entrant: Entrant) -> Spread | None:
        values = self._figures(entrant)
        return Spread.of(values) if values else None

    def ratio(self, peer: Entrant | None) -> Spread | None:
        """The reference's figure over that of `peer`, round by round."""
        reference = self.entrant(self.reference)
        if peer is None or reference is None:
            return None
        pairs = list(zip(self._figures(reference), self._figures(peer), strict=False))
        return Spread.of([own / other for own, other in pairs if other > 0] or [float("nan")]) if pairs else None

    def best_peer(self) -> Entrant | None:
        peers = [it for it in self.entrants if it.samples and it.name not in (self.reference, FLOOR)]
        return min(peers, key=lambda peer: Spread.of(self._figures(peer)).median, default=None)

    def _figures(self, entrant: Entrant) -> list[float]:
        return [sample.figure(self.scenario.figure) for sample in entrant.samples]

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario.name,
            "title": self.scenario.title,
            "figure": self.scenario.figure.value,
            "unit": self.scenario.unit,
            "reference": self.reference,
            "valid": self.valid,
            "entrants": [
                {
                    **dataclasses.asdict(entrant),
                    "figure": _as_json(self.figure(entrant)),
                    "reference_ratio": _as_json(self.ratio(entrant)),
                }
                for entrant in self.entrants
            ],
        }


def overview(results: Sequence[Result], names: Sequence[str]) -> str:
    """The one table: a row for each scenario, a column for each balancer, and below it what must be known."""
    reference = results[0].reference
    ratios = [f"{reference} / {other}" for other in ("best peer", ENVOY, FLOOR)]
    header = ["scenario", "figure", *names, *ratios]
    rows = [header]
    for result in results:
        cells = [_cell(result, result.entrant(name)) for name in names]
        best = result.best_peer()
        ratio = result.ratio(best)
        to_best = f"{ratio} {best.name}" if best is not None and ratio is not None else ""
        others = [str(result.ratio(result.entrant(name)) or "") for name in (ENVOY, FLOOR)]
        figure = f"{result.scenario.figure.value} / {result.scenario.unit}"
        if result.scenario.figure is Figure.P99:
            figure = f"{result.scenario.figure.value} {result.scenario.unit}"
        rows.append([result.scenario.name, figure, *cells, to_best, *others])
    memory = next((result for result in results if result.scenario.name == "1k"), None)
    if memory is not None:
        sizes = [_megabytes(memory.entrant(name)) for name in names]
        rows.append(["PSS", f"MiB after {memory.scenario.name}", *sizes, "", "", ""])
    kept = [column for column in range(len(header)) if column < 2 + len(names) or any(row[column] for row in rows[1:])]
    return markdown([[row[column] for column in kept] for row in rows]) + _remarks(results)


def details(result: Result) -> str:
    """One scenario in full: what else was seen while the figure was taken."""
    header = ["", "version", "figure", "busy", "others", "per second", "p50 ms", "p99 ms", "PSS MiB", "failed"]
    rows = [[*header, f"{result.reference} / it"]]
    rows += [_details_row(result, entrant) for entrant in result.entrants if entrant.samples]
    absent = [f"{entrant.name}: {entrant.absent}\n" for entrant in result.entrants if not entrant.samples]
    return f"{result.scenario.name}: {result.scenario.title}\n\n{markdown(rows)}\n{''.join(absent)}"


def _details_row(result: Result, entrant: Entrant) -> list[str]:
    def seen(text: str, field: Callable[[Any], float | None]) -> str:
        value = entrant.median(lambda it: field(it) if isinstance(it, Sample) else None)
        return "" if value is None else text.format(value)

    return [
        entrant.name,
        entrant.version,
        str(result.figure(entrant)),
        seen("{:.0%}", lambda it: it.busy),
        seen("{:.0%}", lambda it: it.disturbed),
        seen("{:,.0f}", lambda it: it.per_second),
        seen("{:.2f}", lambda it: None if it.load.p50_us is None else it.load.p50_us / 1000),
        seen("{:.2f}", lambda it: None if it.load.p99_us is None else it.load.p99_us / 1000),
        _megabytes(entrant),
        str(entrant.failed),
        "" if entrant.name == result.reference else str(result.ratio(entrant) or ""),
    ]


def _cell(result: Result, entrant: Entrant | None) -> str:
    if entrant is None:
        return ""
    if entrant.samples:
        return str(result.figure(entrant)) + ("" if entrant.valid else " INVALID")
    return "no figure" if entrant.missed else ""


def _megabytes(entrant: Entrant | None) -> str:
    return "" if entrant is None or entrant.pss_kib is None else f"{entrant.pss_kib / 1024:.1f}"


def _remarks(results: Sequence[Result]) -> str:
    """What makes figures missing or doubtful, a line each."""
    lines = []
    for result in results:
        name = result.scenario.name
        for entrant in result.entrants:
            if entrant.missed:
                lines.append(f"{name}: {entrant.name} has no figure: {entrant.absent}")
            elif not entrant.valid:
                lines.append(f"{name}: {entrant.name} is INVALID: {_why(entrant)}")
        if result.disturbed > DISTURBED_LIMIT:
            lines.append(f"{name}: ROUGH, others used {result.disturbed:.0%} of the balancers' CPU")
    return "".join(f"\n{line}" for line in ["", *lines]) if lines else ""


def _why(entrant: Entrant) -> str:
    if entrant.failed:
        first = next((it.first_failure for it in entrant.samples if isinstance(it, MemorySample)), None)
        return f"{entrant.failed:,} failed" + (f", the first with: {first}" if first else "")
    return "answers came without their body, or the load was not offered as promised"


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _as_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else dataclasses.asdict(spread)


def one_line(reason: object) -> str:
    """An error as it stands below a table."""
    return " ".join(str(reason).split())[:REASON_LENGTH]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a terminal; the first row is the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def save(name: str, content: dict[str, Any]) -> Path:
    """Writes one run to bench/results, which is not part of the repository."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
