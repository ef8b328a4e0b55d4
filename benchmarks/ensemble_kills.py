"""To come."""

from benchmarks.harness import Figure, Session


def figures(session: Session) -> dict[str, Figure]:
    """Return none yet."""
    return {}
