"""Clocks, interleaved timings, the profile of a step, energy."""
