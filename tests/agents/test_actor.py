"""In which order the Thinker does what was decided."""

from types import SimpleNamespace

from agents.actor import Actor
from agents.queues import pipe_queues
from agents.state import Outbox, Send
from campaign.rundir import RunDirectory
from campaign.trace_files import Traces
from tasks.messages import FileRecord

PLACE = "trajectories/00000000.dcd"


def test_hooks_are_sent_once_the_files_are_in_place(tmp_path, monkeypatch):
    sent = []
    queues = pipe_queues()

    def send_inputs(specs, *, topic, **others):
        sent.append((topic, (tmp_path / PLACE).exists(), (tmp_path / "hook-results.jsonl").exists()))

    monkeypatch.setattr(queues, "send_inputs", send_inputs)
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / ".staged").write_bytes(b"frames")
    staged = FileRecord(PLACE, "0" * 64, 6, "trajectories/.staged")
    topics = ("hook", "simulate", "infer", "hook")
    sends = [Send(topic, f"{topic}@host", SimpleNamespace(), {}) for topic in topics]
    with Traces(tmp_path) as traces:
        actor = Actor(0, "", queues, SimpleNamespace(), traces, RunDirectory(tmp_path))
        # Published twice, as in lockstep: the second time nothing happens.
        segment_sent = actor.act(Outbox(sends=sends, published=[staged, staged]))
    assert segment_sent is not None
    assert sent == [("simulate", False, False), ("infer", False, False), ("hook", True, False), ("hook", True, False)]
