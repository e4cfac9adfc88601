"""Renders a balancer's configuration from its file in `configs/`.

A line that begins with a condition between two `#` is kept, without it, where all of the condition holds:
`#tls#` where the setup has that tag, `#h1&plain#` with both, `#!kill#` without it. The lines from `#each#`
to `#end#` come once for every pool."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

CONFIGS = Path(__file__).with_name("configs")
_CONDITION = re.compile(r"#([a-z0-9!&]+)#")


def render(template: str, tags: Collection[str], values: Mapping[str, str], pools: int = 1) -> str:
    """The text with its placeholders filled."""
    lines = (CONFIGS / template).read_text().splitlines(keepends=True)
    return "".join(_blocks(iter(lines), tags, values, pools))


def host(pool: int) -> str:
    """The host whose requests are for a pool, where there are several."""
    return f"pool{pool}.bench.example"


def _blocks(lines: Iterator[str], tags: Collection[str], values: Mapping[str, str], pools: int) -> Iterator[str]:
    for line in lines:
        condition, text = _split(line)
        if condition[:1] != ["each"]:
            if _holds(condition, tags):
                yield string.Template(text).substitute(values)
            continue
        block = [_split(line) for line in iter(lambda: next(lines), "#end#\n")]
        if not _holds(condition[1:], tags):
            continue
        kept = string.Template("".join(text for condition, text in block if _holds(condition, tags)))
        for number in range(pools):
            yield kept.substitute(values, pool=f"pool{number}", host=host(number))


def _split(line: str) -> tuple[list[str], str]:
    found = _CONDITION.match(line)
    return (found[1].split("&"), line[found.end() :]) if found else ([], line)


def _holds(condition: list[str], tags: Collection[str]) -> bool:
    return all((word[1:] not in tags) if word.startswith("!") else (word in tags) for word in condition)
