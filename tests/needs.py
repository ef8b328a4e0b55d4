"""Programs that tests need, and what becomes of a test where they are missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import pytest

_SBIN = "/usr/sbin:/usr/local/sbin:/sbin"


def program(name: str) -> str | None:
    """Return where a program is, which need not be on the user's PATH."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def lacking(programs: Sequence[str], package: str) -> str | None:
    """Return which programs are missing and what installs them; None where all are there."""
    missing = [name for name in programs if program(name) is None]
    return f"needs {', '.join(missing)}: apt-get install {package}" if missing else None


def need(*names: str, package: str, requires: str = "ssh") -> None:
    """Skip a test where programs are missing; fail it where somebody insists on them (`.ci/run` installs them)."""
    reason = lacking(names, package)
    if reason is None:
        return
    if requires in os.environ.get("WAYFINDER_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)
