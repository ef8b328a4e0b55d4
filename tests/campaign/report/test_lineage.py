"""The tree of segments: where each began, how far from its basis state, and what is left out of a large one."""

import numpy as np
import pandas as pd
import pytest

from campaign.report.lineage import tree_of

RNG = np.random.default_rng(5)


def segments(parents, frames=None, n_frames=8, ps=2.0):
    n = len(parents)
    return pd.DataFrame(
        {
            "parent_id": pd.array(parents, dtype="Int64"),
            "parent_frame": pd.array(frames or [n_frames - 1] * n, dtype="Int64"),
            "n_frames": n_frames,
            "simulated_ps": ps,
        },
        index=pd.Index(range(n), name="segment_id"),
    )


def test_a_child_begins_where_its_start_lies_in_its_parent():
    # 1 carries on from the end of 0, 2 begins at its fourth frame of eight.
    found = tree_of(segments([None, 0, 0], [0, 7, 3]), RNG)
    assert found.nodes.depth_ps.tolist() == [2.0, 4.0, 3.0]
    assert found.nodes.parent.tolist() == [-1, 0, 0]
    assert found.longest_ps == 4.0
    assert found.is_whole


def test_no_two_ends_are_drawn_in_one_row():
    parents = [None, None, 0, 0, 1, 2, 2, 4]
    nodes = tree_of(segments(parents), RNG).nodes
    ends = nodes[~nodes.index.isin(nodes.parent)]
    assert sorted(ends.row) == list(range(len(ends)))
    for parent, children in nodes[nodes.parent >= 0].groupby("parent"):
        assert nodes.row[parent] == pytest.approx(children.row.mean())


def test_a_large_tree_is_thinned_to_ends_and_partings_that_hang_together():
    rng = np.random.default_rng(3)
    parents = [None] + [int(rng.integers(max(0, n - 40), n)) for n in range(1, 3000)]
    every = tree_of(segments(parents), rng, most=10_000).nodes
    found = tree_of(segments(parents), rng, most=200)
    assert not found.is_whole
    assert 50 < len(found.nodes) <= 200
    assert found.n_segments == 3000
    for segment, node in found.nodes.iterrows():
        assert node.depth_ps == every.depth_ps[segment]
        ancestor = parents[segment]
        while ancestor is not None and ancestor not in found.nodes.index:
            ancestor = parents[ancestor]
        assert node.parent == (-1 if ancestor is None else ancestor)


def test_a_campaign_without_segments_has_no_tree():
    found = tree_of(segments([]), RNG)
    assert found.nodes.empty
    assert found.longest_ps == 0.0


def test_a_parent_that_is_not_there_makes_a_beginning():
    frame = segments([None, 0, 1]).drop(index=1)
    assert tree_of(frame, RNG).nodes.parent.tolist() == [-1, -1]
