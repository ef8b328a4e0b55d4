"""IMDv3 in bytes: what is said when a client comes, a frame, and what a client may ask for.

The protocol is that of imdclient, https://imdclient.readthedocs.io/en/latest/protocol_v3.html: headers of two 32-bit
integers in network order, the second of the handshake excepted; bodies in the byte order of this machine; Angstrom
and ps; every frame with the same packets in the same order.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np

VERSION = 3
HEADER = struct.Struct("!ii")
_TIME = struct.Struct("=ddq")
_ANGSTROM_PER_NM = np.float32(10.0)


class Header(IntEnum):
    """Types of headers that are sent or understood."""

    DISCONNECT = 0
    COORDINATES = 2
    GO = 3
    HANDSHAKE = 4
    KILL = 5
    PAUSE = 7
    TRANSMISSION_RATE = 8
    SESSION_INFO = 10
    RESUME = 11
    TIME = 12
    BOX = 13
    WAIT = 16


def pack_greeting(periodic: bool) -> bytes:
    """Return the handshake and the session info: time, box if there is one, and positions that are not wrapped."""
    time, energies, positions, wrapped, velocities, forces = 1, 0, 1, 0, 0, 0
    info = bytes([time, energies, int(periodic), positions, wrapped, velocities, forces])
    # The version stands in this machine's own byte order, by which a client knows that of all bodies.
    handshake = struct.pack("!i", Header.HANDSHAKE) + struct.pack("=i", VERSION)
    return handshake + HEADER.pack(Header.SESSION_INFO, len(info)) + info


def pack_frame(positions: np.ndarray, box: np.ndarray | None, step: int, timestep_ps: float) -> bytes:
    """Return one frame as it is sent.

    Parameters
    ----------
    positions : ndarray of shape (n_atoms, 3), float
        In nm.
    box : ndarray of shape (3, 3), float, or None
        In nm, a vector in each row.
    step
        Integration steps since the segment's start.
    """
    parts = [HEADER.pack(Header.TIME, 1), _TIME.pack(timestep_ps, step * timestep_ps, step)]
    if box is not None:
        parts += [HEADER.pack(Header.BOX, 1), _in_angstrom(box)]
    parts += [HEADER.pack(Header.COORDINATES, len(positions)), _in_angstrom(positions)]
    return b"".join(parts)


def _in_angstrom(lengths: np.ndarray) -> bytes:
    # Rounded as trajectories are, so that a client reads what lies in the file.
    return (np.asarray(lengths, dtype=np.float32) * _ANGSTROM_PER_NM).tobytes()
