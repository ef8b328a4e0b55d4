"""The campaign's stores: one of each kind it uses, emptied at the end, and nobody else's data touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from campaign.rundir import missing_directories, remove_made
from tasks.errors import BadInput
from tasks.messages import StoreKind, StoreSpec, Topic
from tasks.transport import clear, count_objects, open_store


class Stores:
    """Where each topic's data lie.

    Parameters
    ----------
    kinds
        Kind of store of each topic.
    run_id
        Makes names unique, also on a shared server.
    file_dir
        Directory of the file store: the run's own, for `sweep` removes it.
    redis
        Host and port; needed if a kind is ``redis``.
    globus_config
        Needed if a kind is ``globus``.

    Raises
    ------
    BadInput
        When the file store's directory cannot be made.
    """

    def __init__(
        self,
        kinds: Mapping[Topic, StoreKind],
        run_id: str,
        threshold: int,
        file_dir: Path,
        redis: tuple[str, int] | None,
        globus_config: Path | None,
    ) -> None:
        self._made: list[Path] = []
        options: dict[StoreKind, tuple[tuple[str, str], ...]] = {"inline": ()}
        if "file" in kinds.values():
            self._made = missing_directories(file_dir)
            try:
                file_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(
                    f"file store {file_dir} cannot be made: {error.strerror}; name another place with --ps-file-dir"
                ) from error
            options["file"] = (("store_dir", str(file_dir)),)
        if redis is not None:
            options["redis"] = (("hostname", redis[0]), ("port", str(redis[1])))
        if globus_config is not None:
            options["globus"] = (("config", str(globus_config)),)
        specs = {
            kind: StoreSpec(f"wayfinder-{run_id[:12]}", kind, options[kind], threshold)
            for kind in set(kinds.values())
        }
        self.of = {topic: specs[kind] for topic, kind in kinds.items()}

    @property
    def specs(self) -> tuple[StoreSpec, ...]:
        """Each store once."""
        return tuple(dict.fromkeys(self.of.values()))

    def remove(self) -> None:
        """Remove the directories that were made for the file store, with what they hold."""
        remove_made(self._made)

    def sweep(self) -> tuple[int, int]:
        """Remove what killed attempts left behind; return how many objects that was, and how many are left."""
        swept = left = 0
        for spec in self.specs:
            swept += count_objects(spec)
            clear(spec)
            left += count_objects(spec)
        open_store.cache_clear()
        return swept, left
