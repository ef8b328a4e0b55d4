"""Hooks run by hand: functions, commands, and what is wrong with them."""

import json
import os
import sys
import threading
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from tasks.errors import HookFailed
from tasks.hook import run_hook
from tasks.messages import HookSpec, SegmentSummary
from tasks.transport import PASSWORD_VARIABLE

SEGMENT = SegmentSummary(
    segment_id=7, parent_id=3, parent_frame=1, walker_id=0, iteration=0, steered=True, novelty=0.5, n_frames=8,
    n_atoms=22, simulated_ps=2.0, potential_energy_kj_mol=-100.0, mean_temperature_K=300.0,
    trajectory="trajectories/00000007.dcd",
)  # fmt: skip


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Return what makes a spec of a hook; a function's source goes into a module of a new name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    run_dir, here = tmp_path / "run", tmp_path / "here"
    run_dir.mkdir()
    here.mkdir()

    def make(hook: str, moment="after-segment", segment=SEGMENT) -> HookSpec:
        if hook.startswith(("def ", "import ")):
            name = f"hook_{uuid.uuid4().hex[:8]}"
            (here / f"{name}.py").write_text(hook)
            hook = f"{name}:f"
        return HookSpec(2**40, 1, moment, hook, segment, str(run_dir), str(here), 60.0)

    return make


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def refusal(spec: HookSpec) -> str:
    with pytest.raises(HookFailed) as caught:
        run_hook(spec)
    assert str(caught.value).startswith(f"--{spec.moment} {spec.hook} ")
    return str(caught.value).removeprefix(f"--{spec.moment} {spec.hook} ")


def test_a_function_gets_the_run_and_the_segment(spec):
    hook = spec("def f(run, segment):\n    return {run.name: segment.segment_id, 'T': segment.mean_temperature_K}")
    result = run_hook(hook)
    assert result.values == {"run": 7.0, "T": 300.0}
    assert (result.task_id, result.attempt, list(result.seconds)) == (2**40, 1, ["run"])


def test_after_the_campaign_there_is_no_segment(spec):
    hook = spec("def f(run, segment):\n    return {'none': int(segment is None)}", "after-campaign", None)
    assert run_hook(hook).values == {"none": 1.0}


@pytest.mark.parametrize(
    ("returned", "values"),
    [("None", {}), ("{}", {}), ("{'a': np.float32(0.5), 'b': np.int64(2)}", {"a": 0.5, "b": 2.0})],
)
def test_what_can_be_kept(spec, returned, values):
    assert run_hook(spec(f"import numpy as np\ndef f(run, segment): return {returned}")).values == values


@pytest.mark.parametrize(
    "returned", ["3", "{'a': 'b'}", "{'a': True}", "{1: 2}", "{'a': float('nan')}", "[('a', 1)]"]
)
def test_what_cannot_be_kept(spec, returned):
    assert "return a dictionary of names and finite numbers" in refusal(
        spec(f"def f(run, segment): return {returned}")
    )


@pytest.mark.parametrize(("returned", "reached"), [("True", 1.0), ("segment.segment_id > 7", 0.0)])
def test_whether_to_go_on(spec, returned, reached):
    hook = spec(f"def f(segment): return {returned}", "continue-until")
    assert run_hook(hook).values == {"reached": reached}


def test_whether_to_go_on_is_yes_or_no(spec):
    assert refusal(spec("def f(segment): return 1", "continue-until")) == "returned 1: return True or False"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(run, segment): return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("import sys\ndef f(run, segment): sys.exit(3)", "raised SystemExit: 3"),
        ("def g(run, segment): pass", "has no f: look for a slip"),
    ],
)
def test_a_function_that_fails(spec, source, said):
    assert said in refusal(spec(source))


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "while True:\n        try: import time; time.sleep(9)\n        except Exception: pass"],
)
def test_a_function_that_does_not_end(spec, body):
    hook = replace(spec(f"def f(run, segment):\n    {body}"), timeout_s=0.2)
    assert refusal(hook) == "took longer than --hook-timeout 0.2 s"


def test_beside_the_main_thread_functions_run_unbounded(spec):
    hook = replace(spec("import time\ndef f(run, segment): time.sleep(0.05); return {'a': 1}"), timeout_s=0.01)
    results = []
    thread = threading.Thread(target=lambda: results.append(run_hook(hook)))
    thread.start()
    thread.join()
    assert results[0].values == {"a": 1.0}


def told(hook: HookSpec) -> str:
    """What a hook wrote into a file where it ran."""
    return (Path(hook.here) / "told").read_text()


@pytest.mark.parametrize(("moment", "segment"), [("after-segment", SEGMENT), ("after-campaign", None)])
def test_a_command_gets_the_run_and_the_segment(spec, monkeypatch, moment, segment):
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    monkeypatch.setenv("WAYFINDER_SEGMENT", "of another hook")
    hook = spec(python("import json, os; json.dump(dict(os.environ), open('told', 'w'))"), moment, segment)
    assert run_hook(hook).values == {}
    environment = json.loads(told(hook))
    assert PASSWORD_VARIABLE not in environment
    assert environment["WAYFINDER_RUN_DIR"] == hook.run_dir
    assert json.loads(environment.get("WAYFINDER_SEGMENT", "null")) == (segment and asdict(segment))


@pytest.mark.parametrize(
    ("printed", "values"),
    [
        ('noise\n{"rg, nm": 0.5, "n": 3}\n\n', {"rg, nm": 0.5, "n": 3.0}),
        ('{"a": 1}\nbye\n', {}),
        ("[1, 2]", {}),
        ('{"a": "b"}', {}),
        ('{"a": NaN}', {}),
        ('{"a": 1%s}' % ("0" * 400), {}),
        ("", {}),
    ],
)
def test_the_last_line_that_a_command_prints(spec, tmp_path, printed, values):
    (tmp_path / "printed").write_text(printed)
    assert run_hook(spec(f"cat '{tmp_path / 'printed'}'")).values == values


def test_no_shell_reads_a_command(spec):
    hook = spec("echo $HOME > told")
    run_hook(hook)
    assert os.listdir(hook.here) == []


def test_a_command_that_fails_is_told_with_its_last_words(spec):
    code = "import sys; print('no', file=sys.stderr); sys.exit('no such atoms')"
    assert refusal(spec(python(code))) == "ended with exit code 1: no such atoms"
    assert refusal(spec("false")) == "ended with exit code 1: it said nothing"


def test_a_command_that_is_gone(spec):
    assert "cannot be run" in refusal(spec("no-such-program-here"))


def test_a_command_that_does_not_end_is_ended_with_what_it_started(spec):
    hook = replace(spec("sh -c 'sleep 60 & echo $! > told; wait'"), timeout_s=0.5)
    assert refusal(hook) == "took longer than --hook-timeout 0.5 s"
    number = int(told(hook))
    deadline = time.monotonic() + 20
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_a_command_leaves_holds_nobody_up(spec):
    hook = spec("sh -c 'sleep 60 & echo $! > told; echo {\\\"a\\\": 1}'")
    result = run_hook(hook)
    psutil.Process(int(told(hook))).kill()
    assert result.values == {"a": 1.0}
