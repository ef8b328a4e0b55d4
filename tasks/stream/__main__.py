"""``python -m tasks.stream produce|consume``."""

from tasks.stream.command import main

if __name__ == "__main__":
    raise SystemExit(main())
