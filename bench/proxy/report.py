"""Turns samples into medians, ratios and one table. Ratios are taken inside each round and only then
summarised, because what disturbs a shared machine disturbs all balancers of a round alike."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load import Sample, Scenario

RESULTS = Path(__file__).parent.parent / "results"

# Above this, caches and the scheduler are shared with strangers often enough to move the ratios.
DISTURBED_LIMIT = 0.05


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
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclass(frozen=True)
class Entrant:
    """One balancer's samples in one scenario, in the order of the rounds."""

    name: str
    version: str
    samples: list[Sample]
    pss_kib: int

    def cost(self) -> Spread:
        return Spread.of([sample.cpu_us_per_request for sample in self.samples])

    def median(self, field: str) -> float:
        return statistics.median(getattr(sample, field) for sample in self.samples)

    @property
    def valid(self) -> bool:
        return all(sample.valid for sample in self.samples)


@dataclass(frozen=True)
class Result:
    """All balancers in one scenario; `reference` is the one the ratios are about."""

    scenario: Scenario
    reference: str
    entrants: list[Entrant]

    @property
    def valid(self) -> bool:
        return all(entrant.valid for entrant in self.entrants)

    def ratio(self, peer: Entrant) -> Spread:
        """CPU per request of the reference over that of `peer`, round by round."""
        reference = self._reference()
        return Spread.of(
            [
                mine.cpu_us_per_request / theirs.cpu_us_per_request
                for mine, theirs in zip(reference.samples, peer.samples, strict=True)
            ]
        )

    def best_peer(self) -> Entrant | None:
        """The cheapest of the others by its median."""
        peers = [entrant for entrant in self.entrants if entrant.name != self.reference]
        return min(peers, key=lambda entrant: entrant.cost().median, default=None)

    def table(self) -> str:
        header = ["", "version", "CPU us/request", "busy", "others", "requests/s", "p50 ms", "p99 ms"]
        header += ["PSS MiB", "failed", f"{self.reference} / it"]
        rows = [header, *(self._row(entrant) for entrant in self.entrants)]
        return "\n".join([self.scenario.title, "", markdown(rows), "", self._verdict()])

    def _row(self, entrant: Entrant) -> list[str]:
        return [
            entrant.name,
            entrant.version,
            str(entrant.cost()),
            f"{entrant.median('busy') * 100:.0f} %",
            f"{entrant.median('disturbed') * 100:.0f} %",
            f"{entrant.median('requests_per_second'):,.0f}",
            f"{entrant.median('p50_us') / 1000:.2f}",
            f"{entrant.median('p99_us') / 1000:.2f}",
            f"{entrant.pss_kib / 1024:.1f}",
            str(sum(sample.failed for sample in entrant.samples)),
            "" if entrant.name == self.reference else str(self.ratio(entrant)),
        ]

    def _verdict(self) -> str:
        if not self.valid:
            broken = ", ".join(entrant.name for entrant in self.entrants if not entrant.valid)
            return f"INVALID: errors or answers without their body from {broken}; the figures mean nothing."
        best = self.best_peer()
        if best is None:
            return "No peer ran, so there is no ratio."
        ratio = f"{self.reference} / {best.name} (the cheapest peer): {self.ratio(best)} CPU per request."
        if max(entrant.median("disturbed") for entrant in self.entrants) > DISTURBED_LIMIT:
            ratio += (
                f"\nROUGH: others used more than {DISTURBED_LIMIT:.0%} of the balancer's CPU; use a quieter machine."
            )
        return ratio

    def _reference(self) -> Entrant:
        return next(entrant for entrant in self.entrants if entrant.name == self.reference)

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": dataclasses.asdict(self.scenario),
            "reference": self.reference,
            "valid": self.valid,
            "entrants": [
                {
                    **dataclasses.asdict(entrant),
                    "cpu_us_per_request": dataclasses.asdict(entrant.cost()),
                    "reference_ratio": dataclasses.asdict(self.ratio(entrant)),
                }
                for entrant in self.entrants
            ],
        }


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
