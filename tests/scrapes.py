"""The values of a scrape by name and labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, ...]
"""A name, and the values of its labels in the order of their names."""


def read_samples(text: str) -> dict[Series, float]:
    """Return the values of a scrape."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def nonzero_samples(registry: CollectorRegistry) -> dict[Series, float]:
    """Return the values of a registry that are not 0."""
    found = read_samples(generate_latest(registry).decode())
    return {
        series: value
        for series, value in found.items()
        if value and not series[0].endswith("_created")
    }


def families(text: str) -> set[str]:
    """Return the names of the samples in a scrape: counters have the suffix `_total`."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
    }
