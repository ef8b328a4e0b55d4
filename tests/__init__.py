"""Tests; a package, for one that something else installed under this name would be found instead."""
