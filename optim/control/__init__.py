"""Decisions from measurements, in a step or between steps: keep_if_finite, autolrs, agvm, ..."""
