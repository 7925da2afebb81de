"""Reads what `/metrics` answers."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Figures:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.samples: list[Sample] = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def of(self, name: str, **labels: str) -> Iterator[float]:
        """The values of a name's samples that bear these labels, whatever others."""
        return (s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def sum(self, name: str, **labels: str) -> float:
        """All of them together; 0 without any."""
        return sum(self.of(name, **labels))

    @property
    def names(self) -> set[str]:
        """The names that an expression may use."""
        return {sample.name for sample in self.samples}


def scrape(url: str) -> Figures:
    """The figures of a service, on a connection of its own: of several processes any may answer."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        return Figures(answer.read().decode())
