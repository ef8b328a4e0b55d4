"""The campaign's stores: one of each kind it uses, emptied at the end, and nobody else's data touched.

What a later process needs is *parked* at the end: brought into a folder of the run directory, from which that process
takes it, so that nothing stays on a server or in a shared folder.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import get_args

from campaign.rundir import missing_directories, remove_made
from campaign.wire import Address, address
from tasks.errors import BadInput, Unreachable
from tasks.messages import Ref, StoreKind, StoreSpec, Topic
from tasks.transport import MAX_INLINE_OPTION, clear, copy, evict, keys, open_store

logger = logging.getLogger(__name__)


def kind_of(name: str) -> StoreKind | None:
    """Return the kind of the store of that name; None for what is parked."""
    suffix = name.rpartition("-")[2]
    return next((kind for kind in get_args(StoreKind) if kind == suffix), None)


def _content(globus_config: Path) -> str:
    try:
        return globus_config.read_text()
    except OSError as error:
        raise BadInput(f"--ps-globus-config {globus_config} cannot be read: {error.strerror}") from error


class Stores:
    """Where each topic's data lie.

    Parameters
    ----------
    kinds
        Kind of store of each topic.
    campaign_id
        Makes names unique, also on a shared server; the same in every process of a campaign.
    parked_dir
        Folder of what is parked, in the run directory; made when something is.
    file_dir
        Directory of the file store: the run's own, for `sweep` removes it.
    redis
        Host and port; needed if a kind is ``redis``.
    globus_config
        Needed if a kind is ``globus``.
    endpoints
        UUIDs of ProxyStore's endpoints; needed if a kind is ``endpoint``.
    max_inline_bytes
        Of arrays in a message; None for what all messages carry.
    older
        Kinds of store in which an earlier process left what is needed to go on.

    Raises
    ------
    BadInput
        When the file store's directory cannot be made.
    """

    def __init__(
        self,
        kinds: Mapping[Topic, StoreKind],
        campaign_id: str,
        parked_dir: Path,
        threshold: int,
        file_dir: Path,
        redis: tuple[str, int] | None,
        globus_config: Path | None,
        max_inline_bytes: int | None = None,
        older: Set[StoreKind] = frozenset(),
        endpoints: Sequence[str] | None = None,
    ) -> None:
        self._made: list[Path] = []
        self._gone: set[str] = set()
        self._known: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        self.left_in_place = False
        options: dict[StoreKind, tuple[tuple[str, str], ...]] = {
            "inline": () if max_inline_bytes is None else ((MAX_INLINE_OPTION, str(max_inline_bytes)),)
        }
        if "file" in {*kinds.values(), *older}:
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
            options["globus"] = (("endpoints", _content(globus_config)),)
        if endpoints is not None:
            options["endpoint"] = (("endpoints", ",".join(endpoints)),)
        name = f"wayfinder-{campaign_id[:12]}"
        specs = {
            kind: StoreSpec(f"{name}-{kind}", kind, options[kind], threshold)
            for kind in {*kinds.values(), *older} & options.keys()
        }
        self.of = {topic: specs[kind] for topic, kind in kinds.items()}
        self.parked = StoreSpec(f"{name}-parked", "file", (("store_dir", str(parked_dir)),), threshold)
        self.by_name = {spec.name: spec for spec in (*specs.values(), self.parked)}

    @property
    def specs(self) -> tuple[StoreSpec, ...]:
        """Each store once."""
        return tuple(dict.fromkeys(self.of.values()))

    def remove(self) -> None:
        """Remove the directories that were made for the file store, unless something had to be left there."""
        if not self.left_in_place:
            remove_made(self._made)

    def know(self, refs: Iterable[Ref]) -> None:
        """Take note of data, for a store that cannot list what lies in it, as an endpoint."""
        for ref in refs:
            self._known[ref.store.name].add(ref.key)

    def park(self, refs: Sequence[Ref]) -> dict[Address, Ref]:
        """Bring data that are there into the run directory; return their new addresses, by the old ones.

        Raises
        ------
        TaskFailed, OSError
            When they cannot be read or written; the old ones are as they were.
        """
        self.know(refs)
        there = {spec.name: set(self._keys(spec)) for spec in self.specs}
        found = (ref for ref in refs if ref.key in there.get(ref.store.name, ()) or ref.store.kind == "globus")
        return {address(ref): copy(ref, self.parked) for ref in found}

    def count(self) -> int:
        """Return how many objects lie in the stores that answer, without what is parked."""
        return sum(len(self._keys(spec)) for spec in self.specs)

    def _keys(self, spec: StoreSpec) -> list[tuple[str, ...]]:
        """Return a store's keys, those known where it lists none; none of a server that is gone, and asked once."""
        if spec.name in self._gone:
            return []
        try:
            return keys(spec, self._known[spec.name])
        except Unreachable as error:
            logger.warning("nothing can be done in a store: %s", error)
            self._gone.add(spec.name)
            return []

    def sweep(self, keep: Set[Address] = frozenset()) -> tuple[int, int]:
        """Remove what killed attempts left behind; return how many objects that was, and how many are left.

        Parameters
        ----------
        keep
            What stays, and does not count as left.
        """
        swept = left = 0
        for spec in (*self.specs, self.parked):
            found = self._keys(spec)
            surplus = [key for key in found if (spec.name, key) not in keep]
            if spec.name in self._gone:
                continue
            if len(surplus) == len(found) and spec.kind != "endpoint":
                clear(spec)
            else:
                for key in surplus:
                    evict(Ref(spec, key))
            swept += len(surplus)
            left += sum((spec.name, key) not in keep for key in self._keys(spec))
        open_store.cache_clear()
        return swept, left
