"""Buckets of histograms, which OpenTelemetry would lay out for milliseconds."""

from typing import Final

SECONDS: Final = (
    *(
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1.0,
        2.5,
        5.0,
        10.0,
        30.0,
        60.0,
        120.0,
        300.0,
        600.0,
    ),
)
"""Upper bounds, from a warm first token to the import of a large model."""
