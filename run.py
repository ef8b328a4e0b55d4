"""``python run.py``: a campaign on this machine or across several; ``python run.py --help`` lists verbs and flags."""

from __future__ import annotations

import os
import sys
import time

_BEGAN = time.monotonic()

if __name__ == "__main__":
    import signal

    if os.environ.get("WAYFINDER_STARTED") != str(os.getpid()):
        # Start over with a new run's id in the environment, where every process of the run inherits it; with one
        # thread per library; and with the environment's programs (Parsl's interchange) on PATH. The process keeps its
        # number, by which it knows that it has started over.
        import uuid

        _threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.environ |= _threads
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        os.environ["WAYFINDER_STARTED"] = str(os.getpid())
        os.environ["WAYFINDER_RUN"] = uuid.uuid4().hex
        # Parsl names its processes with setproctitle, which would write over the id unless told to spare it.
        os.environ["SPT_NOENV"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    # Until the campaign takes signals over, there is nothing to end in order.
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, frame: os._exit(128 + number))

import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path

from agents.launch import Plan, probe_executors, run_campaigns
from agents.outlook import Machine, look_ahead, refuse_what_cannot_fit
from agents.probing import ProbeFailed, lines, problems
from agents.supervisor import Signals
from campaign.archives import mend_archives
from campaign.cli import Command, parse
from campaign.control import comparison, control_settings
from campaign.display import announcement, cautions, tell
from campaign.faults import reach
from campaign.filesystem import allow_open_files, only_process
from campaign.ledger import Ledger
from campaign.molecule import system_spec
from campaign.preparing import prepare_aside
from campaign.processes import reap
from campaign.report.aside import report_aside
from campaign.rerun import rerun as make_ready
from campaign.resuming import Standing, refuse_damage, resumed_settings, standing, told_settings
from campaign.rundir import LEDGER, SUMMARY, RunDirectory, make_folder, remove_made, write_whole
from campaign.settings import Settings
from campaign.status import statuses
from campaign.summary import Summary
from campaign.sweep import TABLE, read_table
from campaign.timing import time_aside
from sites import local
from sites.devices import gpus
from tasks.errors import BadInput
from tasks.prepared import PreparedSystem
from tasks.systems import SystemSpec
from wiring import Member, Parts, crew_of, plan_of, set_up, set_up_several

RUNS = Path(__file__).parent / "runs"

COMPLETE, FAILED, BAD_INPUT = 0, 1, 2

# Open files of a campaign: its lock, log, ledger and traces.
_FILES_EACH = 16

# Folder of the plain run beside a campaign.
CONTROL = "control"


def main(argv: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        command = parse(argv)
        with Signals() as signals:
            return (dry_run if command.dry_run else VERBS[command.verb])(command, signals)
    except Interrupted as error:
        return error.exit_code
    except BadInput as error:
        print(f"wayfinder: {error}", file=sys.stderr)
        return BAD_INPUT


class Interrupted(Exception):
    """A signal came before anything was begun."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


def start(command: Command, signals: Signals) -> int:
    """Run a campaign, and its control if one is asked for; or those of a sweep."""
    if command.sweep is not None:
        return _start_sweep(command, signals)
    prepared = _prepare(command, signals)
    parts = Parts.gather(command.campaign, prepared, _BEGAN)
    run_dir, summary = _run_new(parts, command.run_dir, signals)
    return _conclude(parts, run_dir, summary, signals)


def resume(command: Command, signals: Signals) -> int:
    """Go on with a campaign where its last commit left it, or with those of a sweep that are not over."""
    if (command.named / TABLE).exists():
        return _resume_sweep(command, signals)
    run_dir = RunDirectory.open(command.named)
    with only_process(run_dir.path):
        before = standing(run_dir)
        settings = resumed_settings(run_dir.path, before.settings, command.flags)
        if before.is_over(settings, command.flags) and _control_is_over(run_dir, settings):
            tell(f"{run_dir.path} is complete ({before.segments} segments): nothing is left to do")
            tell(f"run directory: {run_dir.path}")
            return COMPLETE
        parts, summary = _run_again(run_dir, before, settings, signals, _BEGAN)
    return _conclude(parts, run_dir, summary, signals)


def _control_is_over(run_dir: RunDirectory, settings: Settings) -> bool:
    if not settings.control:
        return True
    control = run_dir.path / CONTROL
    if not (control / LEDGER).exists():
        return False
    before = standing(RunDirectory.open(control))
    return before.status == "complete" and before.left_in_order


def _start_sweep(command: Command, signals: Signals) -> int:
    """Run campaigns over one set of workers, each in a directory of its own in that of the sweep."""
    assert command.sweep is not None
    allow_open_files(_FILES_EACH * len(command.several))
    prepared: dict[SystemSpec, PreparedSystem] = {}
    for settings in command.several.values():
        if (spec := system_spec(settings)) not in prepared:
            prepared[spec] = _prepare(Command("start", settings), signals)
    folder, made = make_folder(command.run_dir, RUNS, "sweep")
    try:
        _begin_folder(folder, command.sweep)
        with ExitStack() as stack:
            members = []
            for name, settings in command.several.items():
                parts = Parts.gather(settings, prepared[system_spec(settings)], _BEGAN)
                run_dir = RunDirectory.create(folder / name, RUNS, name, settings.min_free_mb * 1_000_000)
                stack.enter_context(only_process(run_dir.path))
                members.append(Member(parts, run_dir, name=name, shared_by=len(command.several)))
            plans = set_up_several(members, folder, stack)
            for plan in plans:
                refuse_what_cannot_fit(plan)
            summaries = _run(plans, signals)
    except BadInput:
        remove_made(made)
        raise
    return _conclude_sweep(folder, plans, summaries, signals)


def _resume_sweep(command: Command, signals: Signals) -> int:
    """Go on with the campaigns of a sweep that are not over; one that cannot go on is told, and left as it is."""
    folder, refused = command.named.resolve(), False
    rows = read_table(folder / TABLE).rows
    allow_open_files(_FILES_EACH * len(rows))
    members: list[Member] = []
    with ExitStack() as stack:
        for row in rows:
            try:
                member = _left_in_sweep(folder / row.name, command, len(rows), stack)
            except BadInput as error:
                print(f"wayfinder: campaign {row.name}: {error}", file=sys.stderr)
                refused = True
                continue
            members += [] if member is None else [member]
        if members:
            plans = set_up_several(members, folder, stack)
            code = _conclude_sweep(folder, plans, _run(plans, signals), signals)
            return code or (BAD_INPUT if refused else COMPLETE)
    if not refused:
        tell(f"{folder} is complete: nothing is left to do")
    tell(f"run directory: {folder}")
    return BAD_INPUT if refused else COMPLETE


def _left_in_sweep(path: Path, command: Command, n_rows: int, stack: ExitStack) -> Member | None:
    """Return a campaign of a sweep as an earlier process left it; None if it is over."""
    if not path.is_dir():
        raise BadInput(f"{path} is gone: restore it from a copy, or start a sweep of what is missing")
    stack.enter_context(only_process(path))
    if not (path / LEDGER).exists():
        # Killed before it began anything: its inputs are there.
        run_dir = RunDirectory(path)
        settings = Settings.model_validate(told_settings(run_dir))
        parts = Parts.gather(settings, run_dir.read_system(), _BEGAN)
        return Member(parts, run_dir, name=path.name, shared_by=n_rows)
    run_dir = RunDirectory.open(path)
    before = standing(run_dir)
    if before.status == "complete" and before.left_in_order and not command.flags:
        return None  # whatever became of a policy or hooks of the user's since
    settings = resumed_settings(path, before.settings, command.flags)
    if before.is_over(settings, command.flags):
        return None
    return replace(_left_by(run_dir, before, settings, _BEGAN), name=path.name)


def _begin_folder(folder: Path, table: str) -> None:
    try:
        (folder / "logs").mkdir()
        write_whole(folder / TABLE, table.encode())
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}; name another with --run-dir") from error


def _conclude_sweep(folder: Path, plans: Sequence[Plan], summaries: Sequence[Summary], signals: Signals) -> int:
    """Say how its campaigns ended, and return the exit code of the worst."""
    tell("\n".join(f"{plan.name}: {summary.line()}" for plan, summary in zip(plans, summaries, strict=True)))
    if reported := [plan.run_dir.path for plan in plans if plan.settings.report]:
        _report(reported, signals)
    tell(f"run directory: {folder}")
    return max(_exit_code(summary, signals) for summary in summaries)


def rerun(command: Command, signals: Signals) -> int:
    """Let tasks that were given up run again, when the campaign is resumed."""
    run_dir = RunDirectory.open(command.named)
    with only_process(run_dir.path), closing(Ledger(run_dir.ledger)) as ledger:
        told = make_ready(run_dir, ledger, command.segments)
    tell(
        "\n".join(
            [*told, f"`python run.py resume {run_dir.path}` takes them up"] if told else ["nothing was given up"]
        )
    )
    tell(f"run directory: {run_dir.path}")
    return COMPLETE


def status(command: Command, signals: Signals) -> int:
    """Tell how a campaign stands, or one line for each of several."""
    found = statuses(command.named)
    if command.json:
        told = [each.as_dict() for each in found]
        tell(json.dumps(told[0] if (command.named / LEDGER).exists() else told, indent=2))
    elif len(found) == 1:
        tell("\n".join(found[0].lines()))
    else:
        tell("\n".join(each.line() for each in found))
    return COMPLETE


def gather(command: Command, signals: Signals) -> int:
    """Bring what is on this host's scratch into the run directory, and say what is damaged or still elsewhere."""
    run_dir = RunDirectory.open(command.named)
    with only_process(run_dir.path), closing(Ledger(run_dir.ledger)) as ledger:
        before = standing(run_dir)
        told = mend_archives(ledger, run_dir, before.campaign_id, Settings.model_validate(dict(before.settings)))
    tell("\n".join(told))
    tell(f"run directory: {run_dir.path}")
    return COMPLETE


def export(command: Command, signals: Signals) -> int:
    """Write what other programs read of a campaign."""
    from campaign.export import write_exports

    _end_at(signals)
    assert command.export is not None
    for line in write_exports(command.named, command.export):
        tell(line)
    tell(f"run directory: {command.named}")
    return COMPLETE


def report(command: Command, signals: Signals) -> int:
    """Write a page of a campaign, or one that compares several."""
    from campaign.report import write_report

    _end_at(signals)
    tell(f"{write_report((command.named, *command.others), command.out)} is written")
    tell(f"run directory: {command.named}")
    return COMPLETE


def _end_at(signals: Signals) -> None:
    """Let a signal unwind what runs from here on, which leaves nothing half written."""

    def end(number: int, frame: object) -> None:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    if signals.first is not None:
        raise Interrupted(signals.first)


def watch(command: Command, signals: Signals) -> int:
    """Follow a campaign until it has ended or a signal comes."""
    from campaign.watch import follow

    assert command.watch is not None
    follow(command.named, command.watch, lambda: signals.first is not None)
    return COMPLETE if signals.first is None else 128 + signals.first


def _conclude(parts: Parts, run_dir: RunDirectory, summary: Summary, signals: Signals) -> int:
    """Say how it ended, run the control if one is asked for, and return the exit code."""
    tell("\n".join(summary.lines()))
    if parts.settings.control and summary.status == "complete":
        tell(_run_control(parts.settings, run_dir, summary, parts.prepared, signals))
    if parts.settings.report:
        control = run_dir.path / CONTROL
        _report([run_dir.path, *([control] if (control / SUMMARY).exists() else [])], signals)
    tell(f"run directory: {run_dir.path}")
    return _exit_code(summary, signals)


def _report(runs: Sequence[Path], signals: Signals) -> None:
    """Have the reports of campaigns made that have ended; a person in a hurry is not kept."""
    before = len(signals.received)
    if before < 2 and (told := report_aside(runs, lambda: len(signals.received) > before)) is not None:
        tell(told)


def _prepare(command: Command, signals: Signals) -> PreparedSystem:
    answer = prepare_aside(system_spec(command.campaign), lambda: signals.first is not None)
    if answer is None or signals.first is not None:
        raise Interrupted(signals.first or signal.SIGINT)
    prepared, notes = answer
    for note in notes:
        if command.json:
            print(note, file=sys.stderr)
        else:
            tell(note)
    return prepared


def dry_run(command: Command, signals: Signals) -> int:
    """Say what a campaign would take, after all that a start refuses, and leave nothing behind."""
    settings = command.campaign
    prepared = _prepare(command, signals)
    parts = Parts.gather(settings, prepared, _BEGAN)
    run_dir = RunDirectory.create(command.run_dir, RUNS, prepared.name, settings.min_free_mb * 1_000_000)
    try:
        with ExitStack() as stack:
            plan = set_up(parts, run_dir, stack)
            ready_s = time.monotonic() - parts.began
            timing = time_aside(
                prepared, plan.dynamics, settings.trajectory_format, run_dir.path, lambda: signals.first is not None
            )
            if timing is None or signals.first is not None:
                raise Interrupted(signals.first or signal.SIGINT)
            outlook = look_ahead(plan, timing, _machine(plan), ready_s, tuple(_cautions(plan)))
    finally:
        run_dir.remove()
    tell(json.dumps(outlook.as_dict(), indent=2) if command.json else "\n".join(outlook.lines()))
    return COMPLETE


def _cautions(plan: Plan) -> Iterator[str]:
    _, walkers = plan.n_walkers
    return cautions(plan.settings, plan.prepared.platform, sum(place.slots for place in plan.places), walkers)


def _machine(plan: Plan) -> Machine:
    here = {executor.label for executor in plan.crew.executors if local.is_here(executor)}
    elsewhere = tuple(place.site for place in plan.places if place.executor not in here)
    simulates, learns = len(elsewhere) < len(plan.places), plan.destinations["infer"].executor in here
    return Machine(len(os.sched_getaffinity(0)), len(gpus()), simulates, learns, elsewhere)


def probe(command: Command, signals: Signals) -> int:
    """Ask every executor what it is, print that, and leave nothing behind."""
    settings = command.campaign
    prepared = _prepare(command, signals)
    with tempfile.TemporaryDirectory(prefix="wayfinder-") as folder, ExitStack() as stack:
        parts = Parts.gather(settings, prepared, _BEGAN)
        run_dir = RunDirectory.create(Path(folder) / "probe", RUNS, prepared.name, 0)
        stack.enter_context(run_dir.logging())
        member = Member(parts, run_dir)
        plan = plan_of(member, crew_of([member], run_dir.path, stack), stack)
        try:
            reports = probe_executors(plan, signals)
        except ProbeFailed as error:
            print(f"wayfinder: {error}", file=sys.stderr)
            return FAILED if signals.first is None else 128 + signals.first
        finally:
            plan.stores.sweep()
    told = {label: {**asdict(report), "problems": problems(report)} for label, report in reports.items()}
    tell(json.dumps(told, indent=2) if command.json else "\n".join(lines(told)))
    return BAD_INPUT if any(report["problems"] for report in told.values()) else COMPLETE


def _run_new(parts: Parts, named: Path | None, signals: Signals) -> tuple[RunDirectory, Summary]:
    """Run a new campaign in a directory of its own, which is removed again if the campaign never began."""
    run_dir = RunDirectory.create(named, RUNS, parts.prepared.name, parts.settings.min_free_mb * 1_000_000)
    try:
        with only_process(run_dir.path), ExitStack() as stack:
            plan = set_up(parts, run_dir, stack)
            refuse_what_cannot_fit(plan)
            (summary,) = _run([plan], signals)
    except BadInput:
        run_dir.remove()
        raise
    return run_dir, summary


def _run_again(
    run_dir: RunDirectory, before: Standing, settings: Settings, signals: Signals, began: float
) -> tuple[Parts, Summary]:
    """Go on with a campaign; its directory stays whatever happens."""
    member = _left_by(run_dir, before, settings, began)
    with ExitStack() as stack:
        (summary,) = _run(set_up_several([member], run_dir.path, stack), signals)
        return member.parts, summary


def _left_by(run_dir: RunDirectory, before: Standing, settings: Settings, began: float) -> Member:
    """Return a campaign that an earlier process left, with whatever that left running ended."""
    refuse_damage(run_dir)
    prepared = run_dir.read_system()
    if settings.platform not in ("auto", prepared.platform):
        prepared = replace(prepared, platform=settings.platform)
    parts = Parts.gather(settings, prepared, began)
    if before.last_run_id is not None:
        reap(before.last_run_id)  # what a process that was killed left behind
    return Member(parts, run_dir, before)


def _run(plans: Sequence[Plan], signals: Signals) -> list[Summary]:
    """Run campaigns to their ends, with a summary in the directory of each."""
    for plan in plans:
        for line in (*_cautions(plan), announcement(plan.settings, plan.prepared, plan.run_dir.log)):
            tell(f"{plan.name}: {line}" if plan.name else line)
    summaries = run_campaigns(plans, signals)
    reach("before-summary")
    return [_write(plan, summary) for plan, summary in zip(plans, summaries, strict=True)]


def _write(plan: Plan, summary: Summary) -> Summary:
    try:
        plan.run_dir.write_json(SUMMARY, summary.as_dict())
    except OSError as error:
        reason = f"summary.json could not be written: {error.strerror}; {summary.reason or ''}".rstrip("; ")
        return replace(summary, status="failed", reason=reason)
    return summary


def _run_control(
    settings: Settings, run_dir: RunDirectory, steered: Summary, prepared: PreparedSystem, signals: Signals
) -> str:
    """Run plain MD of equal length in ``control/`` of the run directory; return both coverages in a sentence."""
    try:
        plain = _control_summary(settings, run_dir, steered, prepared, signals)
    except BadInput as error:
        return f"control: plain MD could not be run: {error}"
    except Interrupted:
        return "control: plain MD was not begun"
    return comparison(steered, plain)


def _control_summary(
    settings: Settings, run_dir: RunDirectory, steered: Summary, prepared: PreparedSystem, signals: Signals
) -> Summary:
    """Run the control, or go on with one that an earlier process began."""
    path, began = run_dir.path / CONTROL, time.monotonic()
    kept = run_dir.equilibrated if run_dir.equilibrated.is_dir() else None
    control = control_settings(settings, steered.segments, kept)
    if (path / LEDGER).exists():
        before = standing(RunDirectory.open(path))
        with only_process(path):
            again = resumed_settings(path, before.settings, {"max_segments": steered.segments})
            return _run_again(RunDirectory.open(path), before, again, signals, began)[1]
    shutil.rmtree(path, ignore_errors=True)  # of a process that was killed before it began anything
    if kept is not None:
        prepared = _prepare(Command("start", control), signals)
    return _run_new(Parts.gather(control, prepared, began), path, signals)[1]


VERBS = {
    "start": start, "resume": resume, "rerun": rerun, "status": status, "gather": gather,
    "report": report, "watch": watch, "export": export, "probe": probe,
}  # fmt: skip


def _exit_code(summary: Summary, signals: Signals) -> int:
    if signals.first is not None:
        return 128 + signals.first
    if summary.status == "interrupted":
        return 128 + signal.SIGTERM  # as a scheduler would have ended it
    return COMPLETE if summary.status == "complete" else FAILED


def leave(code: int) -> None:
    """End the process, also when a thread of a library would keep it alive for ever."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(thread.is_alive() and not thread.daemon for thread in others):
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
