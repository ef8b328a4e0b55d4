"""What the ledger tells of specs and results, a later process reads back as it was."""

import math
from dataclasses import replace

import numpy as np
import pytest

from campaign.settings import Settings
from campaign.wire import address, addresses, decode, encode, plain, readdress
from tasks.errors import BadInput
from tasks.messages import (
    Coordinate,
    CoordinateResult,
    CoordinateSpec,
    Coverage,
    EmbedSpec,
    FileRecord,
    MoveSpec,
    Ref,
    SegmentResult,
    SegmentSpec,
    StoreSpec,
)

FILE = StoreSpec("run-file", "file", (("store_dir", "/old"),), 10)
REDIS = StoreSpec("run-redis", "redis", (("hostname", "localhost"), ("port", "4711")))
STORES = {spec.name: spec for spec in (FILE, REDIS)}
FRAMES = Ref(REDIS, ("a",), 100)
INLINE = Ref(FILE, (), 3, b"\xff\x00a")

SEGMENT = SegmentSpec(
    segment_id=7, attempt=2, walker_id=1, iteration=0, parent_id=None, parent_frame=None, system=INLINE,
    system_id="digest", start=FRAMES, start_row=0, seed=5, dynamics=Settings().dynamics("CPU"), store=REDIS,
    run_dir=None,
)  # fmt: skip
LOOK = EmbedSpec(
    task_id=2**40, attempt=1, system=INLINE, system_id="digest", batches=((3, FRAMES), (4, INLINE)), reference=None,
    reference_number=1, model=FRAMES, model_version=2, embedding="aae", candidates="novel", n_candidates=4,
    novelty="sparsity", neighbours=3, latent=2, max_reference=100, max_frontier=10, seed=1, store=FILE, run_dir="/r",
)  # fmt: skip
RESULT = SegmentResult(
    7, 2, 8, 22, 2.0, -3.5, 300.0, FRAMES, INLINE, FileRecord("trajectories/7.dcd", "0" * 64, 5, ".7"), {"write": 0.1}
)

ANGLES = Coordinate("phi-psi", ("phi", "psi"))
LEARNED = CoordinateSpec(
    9, 1, INLINE, "digest", Coordinate("aae", ("z1",), (1,)), ((3, FRAMES),), FRAMES, 2, FILE, INLINE, (0, 4)
)
ROWS = CoordinateResult(9, 1, 2, ((3, b"\x00\xff"), (4, b"")), b"\x01", 7, {"embed": 0.5})


@pytest.mark.parametrize(
    "message",
    [
        SEGMENT,
        LOOK,
        RESULT,
        replace(SEGMENT, coordinate=ANGLES),
        replace(RESULT, pcoord=b"\x00\x80"),
        LEARNED,
        ROWS,
        MoveSpec(1, 1, ("offer", 3), FRAMES, FILE),
        FRAMES,
        INLINE,
    ],
)
def test_a_message_is_read_back_as_it_was(message):
    assert decode(type(message), encode(message), STORES) == message
    assert decode(type(message), plain(message), STORES) == message


def test_addresses_are_those_of_this_process():
    moved = StoreSpec("run-redis", "redis", (("hostname", "localhost"), ("port", "1")))
    back = decode(SegmentSpec, encode(SEGMENT), {**STORES, "run-redis": moved})
    assert (back.start.store, back.store, back.start.key) == (moved, moved, ("a",))


def test_readdressing_changes_addresses_and_nothing_else():
    told = encode({"spec": LOOK, "numbers": [1, 2.5, None], "text": "$ref"})
    assert set(addresses(told)) == {("run-redis", ("a",))} == {address(FRAMES)}
    after = Ref(FILE, ("b",), 7)
    changed = readdress(told, {address(FRAMES): after})
    assert set(addresses(changed)) == {("run-file", ("b",))}
    assert readdress(changed, {address(after): FRAMES}).replace(",7,", ",100,") == told
    assert readdress(told, {}) == told


@pytest.mark.parametrize(
    "told", ["{}", '{"metric":"m","value":"x","cells_deg":15}', '{"$ref":["elsewhere",["a"],1,null]}', "[]"]
)
def test_what_cannot_be_read_is_refused_in_a_sentence(told):
    with pytest.raises(BadInput, match="the ledger tells of a Coverage that cannot be read"):
        decode(Coverage, told, STORES)


def test_numbers_of_numpy_are_plain_and_other_objects_are_refused():
    assert plain({"a": np.float32(0.5), "b": np.arange(3), "c": np.int64(4)}) == {"a": 0.5, "b": [0, 1, 2], "c": 4}
    assert math.isnan(plain(float("nan")))
    with pytest.raises(TypeError, match="object cannot be kept"):
        encode(object())
    with pytest.raises(TypeError, match="function cannot be kept"):
        encode({"a": lambda: None})
