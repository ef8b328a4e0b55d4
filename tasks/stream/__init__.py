"""Streams: named arrays from producers to a consumer while both run, bounded, counted and checked.

A `Producer` puts arrays; a `Consumer` takes them as they come, from one producer or several. Small events (number,
checksum, address) go through ZeroMQ or a Redis queue, bulk goes where a `Bulk` puts it. Whoever comes first waits for
the other; an end that dies is noticed within the stream's lease. ``python -m tasks.stream`` is a producer and a
consumer of frames as commands.

ProxyStore holds the bulk (`tasks.transport`); its `proxystore.stream` is not used, for it unpickles every event and
imports whatever class an event names, drops what no subscriber reads (ZeroMQ) or queues without bound (Redis), and
waits for ever on an end that is gone.
"""

from tasks.stream.bulk import Bulk, InDirectory, InMessage, InStore
from tasks.stream.ends import Consumer, Item, Producer, Put
from tasks.stream.spec import StreamSpec

__all__ = ["Bulk", "Consumer", "InDirectory", "InMessage", "InStore", "Item", "Producer", "Put", "StreamSpec"]
