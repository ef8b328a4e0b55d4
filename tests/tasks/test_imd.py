"""An IMD server with real clients: those of others, and sockets that behave as badly as they like."""

import multiprocessing
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest

import tasks.imd
import tasks.imd_connections
from tasks.errors import BadInput
from tasks.imd import ImdBounds, ImdServer
from tasks.imd_protocol import HEADER, Header

N_ATOMS = 22
LIMIT_S = 60.0
GREETING_BYTES = 23
# What a sender of this machine's byte order says: IMDv3, and 7 options.
GREETING = struct.pack("!i", 4) + struct.pack("=i", 3) + struct.pack("!ii", 10, 7)
# Small enough for a client that does not read to be noticed.
NARROW = {"kernel_bytes": 2**14, "buffer_frames": 4}


def frames(n: int, n_atoms: int = N_ATOMS) -> np.ndarray:
    return np.random.default_rng(7).normal(0.0, 2.0, (n, n_atoms, 3)).astype(np.float32)


class Viewer:
    """A client of the bare protocol."""

    def __init__(self, server: ImdServer, n_atoms: int = N_ATOMS, receive_bytes: int | None = None) -> None:
        self.n_atoms = n_atoms
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect((server.host, server.port))

    def say(self, header: Header, value: int = 0) -> None:
        self.socket.sendall(HEADER.pack(header, value))

    def go(self) -> "Viewer":
        assert self.read(GREETING_BYTES)[:16] == GREETING
        self.say(Header.GO)
        return self

    def read(self, n_bytes: int) -> bytes:
        """Return so many bytes, or what there is before the end."""
        data = bytearray()
        while len(data) < n_bytes:
            try:
                part = self.socket.recv(min(n_bytes - len(data), 2**20))
            except ConnectionResetError:
                break
            if not part:
                break
            data += part
        return bytes(data)

    def frame(self) -> tuple[int, np.ndarray] | None:
        """Return the next frame's step and positions in Angstrom, or None at an end between two frames."""
        data = self.read(40 + 12 * self.n_atoms)
        if not data:
            return None
        assert len(data) == 40 + 12 * self.n_atoms, "a torn frame"
        assert HEADER.unpack(data[:8]) == (12, 1)
        _timestep_ps, _time_ps, step = struct.unpack("=ddq", data[8:32])
        assert HEADER.unpack(data[32:40]) == (2, self.n_atoms)
        return step, np.frombuffer(data[40:], "=f4").reshape(-1, 3)

    def all_frames(self) -> list[tuple[int, np.ndarray]]:
        return list(iter(self.frame, None))

    def ended(self) -> bool:
        """Return whether the server disconnects before it sends anything more."""
        return self.read(1) == b""

    def vanish(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., ImdServer]]:
    with ExitStack() as stack:

        def start(n_atoms: int = N_ATOMS, **options: object) -> ImdServer:
            return stack.enter_context(ImdServer(n_atoms=n_atoms, timestep_ps=0.004, **options))

        yield start


def listeners(server: ImdServer, n: int) -> list[Viewer]:
    found = [Viewer(server).go() for _ in range(n)]
    assert server.wait_for_listeners(n, LIMIT_S)
    return found


def publish(server: ImdServer, positions: np.ndarray) -> None:
    """Publish frames whose steps count from 1."""
    for step, frame in enumerate(positions, start=1):
        server.publish(frame, step=step)


def is_held(server: ImdServer) -> bool:
    """Return whether a pause holds the segment for the first time, waiting until it does."""
    changed, tally = server._connections.changed, server._connections.tally
    with changed:
        return changed.wait_for(lambda: tally.n_pauses == 1, LIMIT_S)


def in_thread(call: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread) -> bool:
    thread.join(LIMIT_S)
    return not thread.is_alive()


def assert_published(received: list[tuple[int, np.ndarray]], positions: np.ndarray) -> None:
    """Assert that frames are whole ones of those published, each once and in order."""
    steps = [step for step, _ in received]
    assert steps == sorted(set(steps))
    for step, angstrom in received:
        np.testing.assert_array_equal(angstrom, positions[step - 1] * np.float32(10.0))


MDANALYSIS = """
import sys
import MDAnalysis, numpy as np
topology, url, out = sys.argv[1:]
read = [
    (ts.positions.copy(), ts.dimensions.copy(), ts.time, ts.data["step"], ts.data["dt"])
    for ts in MDAnalysis.Universe(topology, url, buffer_size=4000).trajectory
]
np.savez(out, **dict(zip(("positions", "dimensions", "times", "steps", "dts"), map(np.array, zip(*read)))))
"""


def test_mdanalysis_reads_every_frame(serve, tmp_path):
    from MDAnalysis.lib.mdamath import triclinic_box

    topology = tmp_path / "topology.xyz"
    topology.write_text(f"{N_ATOMS}\n\n" + "C 0.0 0.0 0.0\n" * N_ATOMS)
    server, positions = serve(periodic=True), frames(300)
    box = np.array([[3.0, 0.0, 0.0], [0.5, 3.1, 0.0], [0.2, -0.3, 3.2]], np.float32)
    # A dozen frames fill its buffer, so that it pauses and resumes by itself.
    with subprocess.Popen(
        [sys.executable, "-c", MDANALYSIS, topology, f"imd://{server.host}:{server.port}", tmp_path / "read.npz"]
    ) as reader:
        assert server.wait_for_listeners(1, LIMIT_S)
        for number, frame in enumerate(positions, start=1):
            server.publish(frame, box * (1 + 0.001 * number), step=20 * number)
        server.close()
        assert reader.wait(LIMIT_S) == 0
    with np.load(tmp_path / "read.npz") as read:
        np.testing.assert_allclose(read["positions"], positions * 10.0, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(read["steps"], 20 * np.arange(1, 301))
        np.testing.assert_allclose(read["times"], 0.08 * np.arange(1, 301))
        np.testing.assert_array_equal(read["dts"], 0.004)
        expected = [triclinic_box(*(box * (1 + 0.001 * number) * 10.0)) for number in range(1, 301)]
        np.testing.assert_allclose(read["dimensions"], expected, rtol=1e-5)
    counts = server.counts
    assert (counts.n_clients, counts.n_published, counts.n_sent, counts.n_dropped) == (1, 300, 300, 0)
    assert counts.bytes_sent == 300 * (8 + 24 + 8 + 36 + 8 + 12 * N_ATOMS)


def test_imdclient_reads_in_a_thread(serve):
    from imdclient.IMDClient import IMDClient

    server, positions, read = serve(), frames(5), []

    def follow() -> None:
        client = IMDClient(server.host, server.port, N_ATOMS, multithreaded=False, continue_after_disconnect=True)
        info = client.get_imdsessioninfo()
        read.append((info.time, info.energies, info.box, info.positions, info.wrapped_coords, info.velocities))
        for _ in positions:
            frame = client.get_imdframe()
            read.append((frame.step, frame.time, frame.positions.copy()))
        with pytest.raises(EOFError):
            client.get_imdframe()

    follower = in_thread(follow)
    assert server.wait_for_listeners(1, LIMIT_S)
    publish(server, positions)
    server.close()
    assert ends(follower)
    assert read[0] == (True, False, False, True, False, False)
    assert [time_ps for _, time_ps, _ in read[1:]] == [0.004 * step for step in range(1, 6)]
    assert_published([(step, angstrom) for step, _, angstrom in read[1:]], positions)
    assert len(read) == 6
    assert server.counts.n_garbage == 0


def test_nothing_is_packed_where_nobody_is_due(serve, monkeypatch):
    packed, pack = [], tasks.imd.pack_frame
    monkeypatch.setattr(tasks.imd, "pack_frame", lambda *a: packed.append(a[2]) or pack(*a))
    server, positions = serve(), frames(4)
    publish(server, positions)
    assert packed == []
    viewers = [Viewer(server) for _ in range(3)]
    for viewer in viewers:
        viewer.say(Header.TRANSMISSION_RATE, 2)
        viewer.go()
    assert server.wait_for_listeners(3, LIMIT_S)
    publish(server, positions)
    assert packed == [2, 4]
    server.close()
    assert [[step for step, _ in viewer.all_frames()] for viewer in viewers] == [[2, 4]] * 3
    assert (server.counts.n_published, server.counts.n_sent) == (8, 6)


def test_200_clients_at_once(serve):
    server, positions = serve(), frames(5)
    viewers = [Viewer(server) for _ in range(200)]
    for viewer in viewers:
        viewer.go()
    assert server.wait_for_listeners(200, LIMIT_S)
    publish(server, positions)
    server.close()
    for viewer in viewers:
        received = viewer.all_frames()
        assert len(received) == 5
        assert_published(received, positions)
    counts = server.counts
    assert (counts.n_clients, counts.n_refused, counts.n_sent, counts.n_dropped) == (200, 0, 1000, 0)
    assert counts.bytes_sent == 1000 * (40 + 12 * N_ATOMS)


def test_too_many_are_turned_away_until_one_leaves(serve):
    server = serve(bounds=ImdBounds(n_clients=2))
    first, second = listeners(server, 2)
    assert [Viewer(server).ended() for _ in range(3)] == [True] * 3
    first.say(Header.DISCONNECT)
    assert first.ended()
    third = Viewer(server).go()
    assert server.wait_for_listeners(2, LIMIT_S)
    publish(server, frames(2))
    server.close()
    assert [len(second.all_frames()), len(third.all_frames())] == [2, 2]
    assert (server.counts.n_clients, server.counts.n_refused, server.counts.n_garbage) == (3, 3, 0)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 4096,
        HEADER.pack(6, 1) + bytes(16),  # forces, which no segment takes
        HEADER.pack(Header.COORDINATES, N_ATOMS),
        HEADER.pack(9, 0),
        HEADER.pack(Header.RESUME, 0) * 200,
    ],
    ids=["http", "ones", "forces", "coordinates", "io error", "too much"],
)
def test_garbage_costs_its_sender_the_connection(serve, said):
    server, positions = serve(bounds=ImdBounds(n_commands=100, n_commands_per_frame=1)), frames(3)
    good, bad = listeners(server, 2)
    publish(server, positions[:1])
    assert bad.frame() is not None
    bad.socket.sendall(said)
    assert bad.ended()
    publish(server, positions)
    server.close()
    assert len(good.read(4 * (40 + 12 * N_ATOMS))) == 4 * (40 + 12 * N_ATOMS)
    counts = server.counts
    assert (counts.n_garbage, counts.n_dropped, counts.killed, counts.paused_s) == (1, 0, False, 0.0)


@pytest.mark.parametrize("before", [b"", HEADER.pack(Header.PAUSE, 0), HEADER.pack(Header.GO, 0)])
def test_what_is_not_said_in_time_costs_the_connection(serve, before):
    server, positions = serve(bounds=ImdBounds(patience_s=0.2)), frames(3)
    good, bad = listeners(server, 1)[0], Viewer(server)
    bad.socket.sendall(before + b"\0\0\0")
    bad.read(GREETING_BYTES)
    assert bad.ended()
    # Nobody has to say anything after GO.
    publish(server, positions)
    server.close()
    assert len(good.all_frames()) == 3
    assert (server.counts.n_garbage, server.counts.n_sent) == (1, 3)


def test_commands_in_pieces_are_understood(serve):
    server = serve()
    viewer = Viewer(server)
    for byte in HEADER.pack(Header.TRANSMISSION_RATE, 2) + HEADER.pack(Header.GO, 0):
        viewer.socket.sendall(bytes([byte]))
    assert server.wait_for_listeners(1, LIMIT_S)
    publish(server, frames(4))
    server.close()
    viewer.read(GREETING_BYTES)
    assert [step for step, _ in viewer.all_frames()] == [2, 4]


def test_who_stops_reading_loses_whole_frames_and_nobody_else_any(serve):
    n_atoms, n = 5000, 60
    server, positions = serve(n_atoms, bounds=ImdBounds(**NARROW, flush_s=LIMIT_S)), frames(n, n_atoms)
    good, stalled = Viewer(server, n_atoms), Viewer(server, n_atoms, receive_bytes=4096)
    good.go(), stalled.go()
    assert server.wait_for_listeners(2, LIMIT_S)
    for step, frame in enumerate(positions, start=1):
        server.publish(frame, step=step)
        received = good.frame()
        assert received is not None
        assert_published([received], positions)
    late = []
    reading = in_thread(lambda: late.extend(stalled.all_frames()))
    server.close()
    assert ends(reading)
    counts = server.counts
    assert counts.n_dropped > 0
    assert counts.n_sent == 2 * n - counts.n_dropped
    assert len(late) == n - counts.n_dropped
    assert_published(late, positions)
    assert counts.bytes_sent == counts.n_sent * (40 + 12 * n_atoms)


def test_who_never_reads_does_not_keep_the_server(serve):
    n_atoms, n = 5000, 30
    server = serve(n_atoms, bounds=ImdBounds(**NARROW, flush_s=0.1))
    viewer = Viewer(server, n_atoms, receive_bytes=4096).go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publish(server, frames(n, n_atoms))
    assert ends(in_thread(server.close))
    assert server.counts.n_sent + server.counts.n_dropped == n
    assert server.counts.n_dropped >= n - 10
    viewer.vanish()


def test_a_frame_larger_than_any_buffer_arrives(serve):
    n_atoms, bounds = 20_000, ImdBounds(buffer_bytes=1000, kernel_bytes=2**14, wait_s=LIMIT_S)
    server, positions = serve(n_atoms, when_slow="wait", bounds=bounds), frames(3, n_atoms)
    viewer = Viewer(server, n_atoms).go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publishing = in_thread(publish, server, positions)
    received = [viewer.frame() for _ in positions]
    assert ends(publishing)
    assert_published(received, positions)
    assert server.counts.n_dropped == 0


def test_the_last_frame_reaches_a_client_that_speaks_too_late(serve):
    server, positions = serve(), frames(50)
    (viewer,) = listeners(server, 1)
    publish(server, positions)
    server.close()
    # To a connection that is closed: answered by a reset, before anything was read.
    viewer.say(Header.RESUME)
    received = viewer.all_frames()
    assert len(received) == 50
    assert_published(received, positions)


def test_the_end_waits_for_what_is_under_way(serve):
    n_atoms = 5000
    server, positions = serve(n_atoms, bounds=ImdBounds(flush_s=LIMIT_S)), frames(6, n_atoms)
    viewer = Viewer(server, n_atoms, receive_bytes=4096).go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publish(server, positions)
    closing = in_thread(server.close)
    received = []
    for _ in positions:
        received.append(viewer.frame())
        # Resets a connection that is closed, and with it whatever its kernel still has to send.
        with suppress(OSError):
            viewer.say(Header.RESUME)
    assert ends(closing)
    assert_published(received, positions)
    assert (server.counts.n_sent, server.counts.n_dropped) == (6, 0)


def test_a_client_may_vanish_in_mid_frame(serve):
    n_atoms = 200_000
    server, positions = serve(n_atoms), frames(3, n_atoms)
    good, bad = Viewer(server, n_atoms), Viewer(server, n_atoms, receive_bytes=4096)
    good.go(), bad.go()
    assert server.wait_for_listeners(2, LIMIT_S)
    received = []
    for step, frame in enumerate(positions, start=1):
        server.publish(frame, step=step)
        if step == 1:
            assert len(bad.read(1000)) == 1000
            bad.vanish()
        received.append(good.frame())
    server.close()
    assert_published(received, positions)
    assert server.counts.n_sent == 3
    assert 1 <= server.counts.n_dropped <= 3
    assert server.counts.n_garbage == 0


def test_frames_wait_for_a_slow_reader(serve):
    n_atoms, n = 5000, 60
    server, positions = (
        serve(n_atoms, when_slow="wait", bounds=ImdBounds(**NARROW, wait_s=LIMIT_S)),
        frames(n, n_atoms),
    )
    viewer = Viewer(server, n_atoms, receive_bytes=4096).go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publishing = in_thread(publish, server, positions)
    received = [viewer.frame() for _ in positions]
    assert ends(publishing)
    assert [step for step, _ in received] == list(range(1, n + 1))
    assert_published(received, positions)
    assert server.counts.waited_s > 0
    assert (server.counts.n_dropped, server.counts.n_too_slow) == (0, 0)


def test_frames_do_not_wait_for_ever(serve):
    n_atoms, n = 5000, 60
    server, positions = serve(n_atoms, when_slow="wait", bounds=ImdBounds(**NARROW, wait_s=0.1)), frames(n, n_atoms)
    good, stalled = Viewer(server, n_atoms), Viewer(server, n_atoms, receive_bytes=4096)
    good.go(), stalled.go()
    assert server.wait_for_listeners(2, LIMIT_S)
    for step, frame in enumerate(positions, start=1):
        server.publish(frame, step=step)
        received = good.frame()
        assert received is not None
        assert received[0] == step
    server.close()
    counts = server.counts
    assert (counts.n_too_slow, counts.n_garbage) == (1, 0)
    # The frame that waited, and what its client had not been sent, some of which the kernel took.
    assert 1 <= counts.n_dropped <= 1 + 4
    assert n <= counts.n_sent < 2 * n


def test_a_pause_holds_the_segment_until_it_is_resumed(serve):
    server, positions = serve(), frames(3)
    viewer = Viewer(server)
    viewer.say(Header.PAUSE)
    viewer.say(Header.PAUSE)
    viewer.go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publishing = in_thread(publish, server, positions)
    assert viewer.frame() is not None
    assert is_held(server)
    assert server.counts.n_published == 1
    viewer.say(Header.RESUME)
    assert ends(publishing)
    server.close()
    assert [step for step, _ in viewer.all_frames()] == [2, 3]
    assert (server.counts.n_pauses, server.counts.n_pauses_cut) == (1, 0)
    assert server.counts.paused_s > 0


@pytest.mark.parametrize("leave", [Viewer.vanish, lambda viewer: viewer.say(Header.DISCONNECT)])
def test_a_pause_ends_with_its_client(serve, leave):
    server = serve()
    viewer = Viewer(server)
    viewer.say(Header.PAUSE)
    viewer.go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publishing = in_thread(publish, server, frames(3))
    assert viewer.frame() is not None
    assert is_held(server)
    leave(viewer)
    assert ends(publishing)
    assert (server.counts.n_published, server.counts.n_pauses_cut) == (3, 0)


def test_pauses_end_at_their_limit(serve):
    server = serve(bounds=ImdBounds(pause_s=0.05))
    viewer = Viewer(server)
    viewer.say(Header.PAUSE)
    viewer.go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publish(server, frames(3))
    server.close()
    assert len(viewer.all_frames()) == 3
    assert (server.counts.n_pauses, server.counts.n_pauses_cut) == (1, 1)
    assert server.counts.paused_s >= 0.05


def test_a_kill_ends_a_pause_and_is_told(serve):
    server = serve()
    viewer = Viewer(server)
    viewer.say(Header.PAUSE)
    viewer.go()
    assert server.wait_for_listeners(1, LIMIT_S)
    assert not server.killed
    publishing = in_thread(publish, server, frames(2))
    assert viewer.frame() is not None
    assert is_held(server)
    viewer.say(Header.KILL)
    assert ends(publishing)
    assert server.killed
    assert server.counts.killed
    server.close()
    assert len(viewer.all_frames()) == 1


def test_closing_ends_a_pause(serve):
    server = serve()
    viewer = Viewer(server)
    viewer.say(Header.PAUSE)
    viewer.go()
    assert server.wait_for_listeners(1, LIMIT_S)
    publishing = in_thread(publish, server, frames(2))
    assert viewer.frame() is not None
    assert is_held(server)
    server.close()
    assert ends(publishing)


def test_the_segment_waits_for_a_listener_if_one_asked_for_it(serve):
    server, positions = serve(), frames(3)
    first = Viewer(server)
    first.say(Header.WAIT, 1)
    first.go()
    assert server.wait_for_listeners(1, LIMIT_S)
    server.publish(positions[0], step=1)
    assert first.frame() is not None
    first.say(Header.DISCONNECT)
    assert first.ended()
    publishing = in_thread(publish, server, positions)
    assert is_held(server)
    second = Viewer(server).go()
    assert ends(publishing)
    # The first had nobody to go to, and was held until somebody came.
    assert [second.frame()[0] for _ in range(2)] == [2, 3]
    second.say(Header.WAIT, 0)
    second.say(Header.DISCONNECT)
    assert second.ended()
    publish(server, positions)
    assert (server.counts.n_published, server.counts.n_pauses) == (7, 1)


@pytest.mark.parametrize(
    ("frame_steps", "rate", "expected"), [(1, 3, [3, 6]), (20, 50, [3, 6]), (20, 5, [*range(1, 7)])]
)
def test_each_client_has_its_own_rate(serve, frame_steps, rate, expected):
    server, positions = serve(frame_steps=frame_steps), frames(6)
    sparse, dense = Viewer(server), Viewer(server).go()
    sparse.say(Header.TRANSMISSION_RATE, rate)
    sparse.go()
    assert server.wait_for_listeners(2, LIMIT_S)
    publish(server, positions)
    assert [sparse.frame()[0] for _ in expected] == expected
    sparse.say(Header.TRANSMISSION_RATE, -1)
    # Said before the next client came, so heard before it.
    third = Viewer(server).go()
    assert server.wait_for_listeners(3, LIMIT_S)
    publish(server, positions)
    server.close()
    assert len(third.all_frames()) == 6
    assert [step for step, _ in sparse.all_frames()] == [*range(1, 7)]
    assert [step for step, _ in dense.all_frames()] == [*range(1, 7)] * 2


def test_no_other_process_keeps_its_sockets(serve):
    server = serve()
    (viewer,) = listeners(server, 1)
    done = multiprocessing.get_context("fork").Event()
    forked = multiprocessing.get_context("fork").Process(target=done.wait, args=(LIMIT_S,))
    forked.start()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as other:
        # Closed here alone, the connection would stay open.
        viewer.socket.sendall(b"\xff" * 8)
        assert viewer.ended()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            Viewer(server)
        assert other.poll() is None
        assert forked.is_alive()
        done.set()
        forked.join(LIMIT_S)
        assert forked.exitcode == 0


def test_a_forked_child_serves_nobody(serve):
    server, positions = serve(), frames(3)
    (viewer,) = listeners(server, 1)

    def child() -> None:
        publish(server, positions)
        server.close()

    forked = multiprocessing.get_context("fork").Process(target=child)
    forked.start()
    forked.join(LIMIT_S)
    assert forked.exitcode == 0
    publish(server, positions[:1])
    server.close()
    assert [step for step, _ in viewer.all_frames()] == [1]


def test_clients_come_in_once_there_are_descriptors_again(serve, monkeypatch):
    monkeypatch.setattr(tasks.imd_connections, "_DEAF_S", 0.05)
    tried, admit = [], tasks.imd_connections.Connections._admit
    monkeypatch.setattr(tasks.imd_connections.Connections, "_admit", lambda self: tried.append(1) or admit(self))

    def starved() -> None:
        server, viewer = serve(), socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        viewer.settimeout(LIMIT_S)
        viewer.connect((server.host, server.port))
        viewer.sendall(HEADER.pack(Header.GO, 0))
        assert not server.wait_for_listeners(1, 0.1)
        assert 1 <= len(tried) < 200, "it tries without pause"
        for descriptor in taken:
            os.close(descriptor)
        assert server.wait_for_listeners(1, LIMIT_S)
        assert viewer.recv(GREETING_BYTES)[:16] == GREETING

    forked = multiprocessing.get_context("fork").Process(target=starved)
    forked.start()
    forked.join(LIMIT_S)
    assert forked.exitcode == 0


def test_a_frame_that_clients_were_not_told_of_is_refused(serve):
    server = serve()
    (viewer,) = listeners(server, 1)
    with pytest.raises(ValueError, match=r"clients were told of 22 atoms without a box"):
        server.publish(np.zeros((21, 3), np.float32), step=1)
    with pytest.raises(ValueError, match=r"clients were told of 22 atoms without a box"):
        server.publish(np.zeros((22, 3), np.float32), np.eye(3), step=1)
    server.close()
    assert viewer.ended()


def test_a_closed_server_takes_frames_and_sends_none(serve):
    server = serve()
    server.close()
    server.close()
    publish(server, frames(2))
    assert (server.counts.n_published, server.counts.n_sent) == (2, 0)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(BadInput, match=r"IMD cannot listen on 203\.0\.113\.1: .*; name an address of this machine"):
        ImdServer("203.0.113.1", n_atoms=1, timestep_ps=0.004)


def test_a_name_is_listened_on_where_clients_look_for_it(serve):
    server = serve(host="localhost")
    assert server.host == "127.0.0.1"
