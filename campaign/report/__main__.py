"""Write the reports of campaigns that have ended, a line for each that could not be: run as a child of theirs."""

from __future__ import annotations

import sys
from pathlib import Path

from campaign.report import write_report
from tasks.errors import BadInput


def main(runs: list[str]) -> int:
    """Write a report into each run directory; return how many could not be."""
    failed = 0
    for run in runs:
        try:
            write_report([Path(run)])
        except BadInput as error:
            print(f"{Path(run).name}: {error}")
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
