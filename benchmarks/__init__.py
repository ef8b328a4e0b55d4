"""Figures that the README quotes: each module is one command, ``python -m benchmarks.NAME``."""
