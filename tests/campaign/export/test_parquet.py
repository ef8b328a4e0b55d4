"""A run's frames as Parquet files."""

import sys

import pandas as pd
import pyarrow.parquet as parquet
import pytest

from campaign.export.parquet import unit, write_parquet
from campaign.trace import Run
from tasks.errors import BadInput

FRAMES = ("segments", "tasks", "inferences", "losses", "attempts", "walkers", "iterations")


def test_files_hold_what_the_frames_do(eventful, tmp_path):
    write_parquet(Run(eventful), tmp_path / "out")
    for name in FRAMES:
        frame = getattr(Run(eventful), name)
        frame = frame.reset_index() if frame.index.name else frame
        found = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert found.columns.tolist() == frame.columns.tolist()
        # What is missing is None, NaN or NA, as the type has it.
        plain, wanted = (each.astype(object).where(each.notna(), None) for each in (found, frame))
        assert plain.to_dict("records") == wanted.to_dict("records")
    assert len(pd.read_parquet(tmp_path / "out" / "attempts.parquet")) == 14


def test_files_of_every_run_have_the_same_types(eventful, told, tmp_path):
    write_parquet(Run(eventful), tmp_path / "full")
    before = {name: parquet.read_schema(tmp_path / "full" / f"{name}.parquet") for name in FRAMES}
    for path in eventful.glob("*.jsonl"):
        path.unlink()
    write_parquet(Run(eventful), tmp_path / "empty")
    for name in FRAMES:
        after = parquet.read_schema(tmp_path / "empty" / f"{name}.parquet")
        assert {each.name: str(each.type) for each in after}.items() <= {
            each.name: str(each.type) for each in before[name]
        }.items()


def test_fields_tell_their_units(eventful, tmp_path):
    write_parquet(Run(eventful), tmp_path / "out")
    fields = {each.name: each.metadata for each in parquet.read_schema(tmp_path / "out" / "segments.parquet")}
    assert fields["simulated_ps"] == {b"unit": b"ps"}
    assert fields["potential_energy_kj_mol"] == {b"unit": b"kJ/mol"}
    assert fields["sent"] == {b"unit": b"s since 1970-01-01 UTC"}
    assert fields["segment_id"] is None


@pytest.mark.parametrize(
    ("column", "wanted"), [("flux_per_ps", "1/ps"), ("queue_s", "s"), ("rss_bytes", "B"), ("segments", None)]
)
def test_a_unit_is_that_of_the_columns_name(column, wanted):
    assert unit(column) == wanted


def test_without_the_library_it_says_how_to_get_it(eventful, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadInput, match=r"pip install -c constraints.txt -e '.\[exports\]'"):
        write_parquet(Run(eventful), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_leaves_nothing(eventful, tmp_path):
    (eventful / "training-results.jsonl").write_text("no JSON\n")
    with pytest.raises(BadInput, match="is no JSON"):
        write_parquet(Run(eventful), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_a_file_is_refused(eventful, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInput, match="--parquet .* cannot be made"):
        write_parquet(Run(eventful), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
