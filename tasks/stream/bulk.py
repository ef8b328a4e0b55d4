"""Where the bytes of a stream's items are between its ends: in messages, in a store, or files of a directory."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import xxhash

from tasks.errors import Damaged, Unreachable
from tasks.messages import Ref, StoreSpec
from tasks.stream.events import Data, Sent
from tasks.transport import evict, put, read

# A key comes from whoever wrote the event: in a store of files it must not lead out of the directory.
_KEY_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")


# Written at once: 16 MB take 50 ms in one piece on ext4 of Linux 6.18, which looks for pages that are as large, and
# 6 ms in many.
_PIECE_BYTES = 262_144


class Bulk(Protocol):
    """Where bytes lie from `put` until `drop`."""

    def put(self, stream: int, number: int, data: bytes) -> tuple[tuple[str, ...], bytes | None]:
        """Put an item's bytes; return their key, and what must travel in the message itself."""

    def get(self, sent: Sent, carried: Data | None) -> Data:
        """Return an item's bytes, of which nothing is known to be right."""

    def drop(self, sent: Sent) -> None:
        """Remove an item's bytes, if they are not meant to stay."""


class InMessage:
    """Bytes travel with their events (ZeroMQ only)."""

    def put(self, stream: int, number: int, data: bytes) -> tuple[tuple[str, ...], bytes | None]:
        """Return the bytes, for the message."""
        return (), data

    def get(self, sent: Sent, carried: Data | None) -> Data:
        """Return what came with the event.

        Raises
        ------
        Damaged
            When nothing did.
        """
        if carried is None:
            raise Damaged(f"item {sent.number} of stream {sent.stream} came without bytes")
        return carried

    def drop(self, sent: Sent) -> None:
        """Do nothing: they are in nobody's keeping."""


class InStore:
    """Bytes lie in one of ProxyStore's stores, which the consumer opens by its own account of it."""

    def __init__(self, store: StoreSpec) -> None:
        self._store = store

    def put(self, stream: int, number: int, data: bytes) -> tuple[tuple[str, ...], bytes | None]:
        """Put bytes in the store."""
        return put(data, self._store).key, None

    def get(self, sent: Sent, carried: Data | None) -> Data:
        """Return bytes from the store.

        Raises
        ------
        Damaged
            When the key is none of this store's.
        Unreachable
            When the store does not answer, or no longer holds them.
        """
        return read(self._ref(sent))

    def drop(self, sent: Sent) -> None:
        """Evict the bytes."""
        evict(self._ref(sent))

    def _ref(self, sent: Sent) -> Ref:
        return ref_in(self._store, sent)


def ref_in(store: StoreSpec, sent: Sent) -> Ref:
    """Return where an item's bytes lie in a store.

    Raises
    ------
    Damaged
        When the key is none of a store's: in one of files it could lead anywhere.
    """
    if not sent.key or not all(_KEY_PART.fullmatch(part) for part in sent.key):
        raise Damaged(f"item {sent.number} of stream {sent.stream} has a key that no store made: {sent.key}")
    return Ref(store, sent.key, sent.n_bytes)


class InDirectory:
    """Bytes are files, ``group{stream}/frame{number:06d}.safetensors``, which stay: the directory is the product.

    Their names follow from stream and number, so that no event can name another file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, stream: int, number: int) -> Path:
        """Return the place of an item."""
        return self.directory / f"group{stream}" / f"frame{number:06d}.safetensors"

    def put(self, stream: int, number: int, data: Data) -> tuple[tuple[str, ...], bytes | None]:
        """Write an item's file, in one step that no reader sees in part."""
        with Staged(self.path(stream, number)) as staged:
            staged.write(data)
            staged.publish()
        return (), None

    def get(self, sent: Sent, carried: Data | None) -> Data:
        """Return what an item's file holds.

        Raises
        ------
        Unreachable
            When it is not there.
        """
        path = self.path(sent.stream, sent.number)
        try:
            return path.read_bytes()
        except OSError as error:
            raise Unreachable(f"frame {path} cannot be read: {error}") from error

    def drop(self, sent: Sent) -> None:
        """Do nothing: the files are the producer's."""


class Staged:
    """A file beside its place, removed unless it is published; its name tells whose leaving it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")

    def __enter__(self) -> Staged:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._part.unlink(missing_ok=True)

    def write(self, data: Data) -> None:
        """Write all bytes beside the place."""
        with self._part.open("wb", buffering=0) as file:
            rest = memoryview(data)
            while len(rest):
                rest = rest[file.write(rest[:_PIECE_BYTES]) :]

    def publish(self) -> None:
        """Move the file to its place."""
        os.replace(self._part, self._path)


def checksum(data: Data) -> str:
    """Return the checksum of an item.

    A CRC of zlib's would take as long as copying the bytes; this one takes a tenth of that.
    """
    return xxhash.xxh3_64_hexdigest(data)


def is_whole(sent: Sent, data: Data) -> bool:
    """Return whether bytes are those that were announced."""
    return len(data) == sent.n_bytes and checksum(data) == sent.checksum


def drop_quietly(bulk: Bulk, sent: Sent) -> None:
    """Remove an item's bytes where that can be done; a store that is gone holds none."""
    with suppress(Unreachable, Damaged):
        bulk.drop(sent)
