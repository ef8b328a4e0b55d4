"""A run directory as pandas frames, for notebooks, reports and anybody's own analysis; nothing in it is changed.

    from campaign.trace import Run

    run = Run("runs/alanine-dipeptide-20261126-101500-4711")
    run.segments.groupby("model_version").novelty.mean()

Frames are made when they are first asked for, from the trace files (JSON lines) and the ledger. A campaign may run
meanwhile: a line that is half written counts as not there yet. Times are UNIX seconds of the host that noted them:
what compares a worker's with the Thinker's is off by as much as their clocks are.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from campaign.archives import trajectory_path
from campaign.ledger import meta_of, read_ledger
from campaign.rundir import LEDGER, PARAMS, SUMMARY, RunDirectory
from campaign.trace_files import FILES, TIMES, worker_of
from campaign.trajectories import read_positions
from tasks.coordinate import unpack_pcoord
from tasks.errors import BadInput
from tasks.prepared import PreparedSystem

if TYPE_CHECKING:
    from tasks.reference import ReferenceSet

_SEGMENT = (
    "segment_id", "parent_id", "parent_frame", "walker_id", "replica", "iteration", "attempt", "executor", "site",
    "steered", "model_version", "novelty", "n_frames", "n_atoms", "simulated_ps", "mean_temperature_K",
    "potential_energy_kj_mol", "payload_bytes",
)  # fmt: skip


class Run:
    """What a campaign left, or leaves while it runs.

    Parameters
    ----------
    path
        Its run directory.

    Raises
    ------
    BadInput
        When it is none. Each property raises it too, where a file that it reads is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / LEDGER).is_file():
            raise BadInput(f"{self.path} is no run: it has no {LEDGER}; name the directory of a campaign")

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """``params.json``: the settings of the campaign, by their names."""
        return self._json(PARAMS)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """``summary.json``; empty while the campaign runs."""
        return self._json(SUMMARY)

    @cached_property
    def host(self) -> Mapping[str, Any]:
        """``host_info.json``: the submit host and the versions of what ran on it."""
        return self._json("host_info.json")

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """Values of the campaign as a whole, of the ledger: status, reason, system, target, ...."""
        with read_ledger(self.path / LEDGER) as db:
            return meta_of(db)

    @cached_property
    def control(self) -> Run | None:
        """The plain run of equal length beside it; None where there is none."""
        path = self.path / "control"
        return Run(path) if (path / LEDGER).is_file() else None

    @cached_property
    def segments(self) -> pd.DataFrame:
        """Segments that counted, in the order in which their results came; index ``segment_id``.

        ========================  =====================================================================
        parent_id, parent_frame   segment and frame that it began at; NA at a basis state (the frame is its number)
        walker_id, replica        whose it is
        iteration                 of a weighted ensemble; 0 elsewhere
        attempt                   the one that counted, from 1
        executor, site, worker    where it ran; the worker as ``host/rank``
        steered                   whether a policy chose its start
        model_version, novelty    of the model that chose it, and how new its start was then; NA without
        n_frames, n_atoms         of its trajectory
        simulated_ps              its length, ps
        simulated_ns              of the campaign so far, itself included, ns
        mean_temperature_K        over the segment, K
        potential_energy_kj_mol   at its end, kJ/mol
        payload_bytes, store      of frames and end state, and the backend that had them
        sent, started, ended, received    by the Thinker, on the worker, on the worker, by the Thinker; UNIX s
        ========================  =====================================================================
        """
        rows = [
            (
                *map(info.get, _SEGMENT),
                _store(info),
                worker_of(line),
                *map(line["timestamp"].get, ("created", "compute_started", "compute_ended", "result_received")),
            )
            for line in self.counted("simulate")
            for info in (line["task_info"],)
        ]
        columns = [*_SEGMENT, "store", "worker", "sent", "started", "ended", "received"]
        found = pd.DataFrame(rows, columns=columns).drop_duplicates("segment_id", keep="last")
        found = _typed(
            found,
            ids=("parent_id", "parent_frame", "model_version"),
            numbers=("novelty", "mean_temperature_K", "potential_energy_kj_mol", "simulated_ps"),
        )
        found["simulated_ns"] = found.simulated_ps.cumsum() / 1000
        return found.set_index("segment_id")

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """Every attempt at a task that came back, of all topics, in the order of the traces.

        ========================  =====================================================================
        topic                     ``simulate``, ``infer``, ``train``, ``move``, ...
        task_id                   of the ledger; a segment's is its ``segment_id``
        attempt                   from 1
        executor, site, worker    where it ran; the worker as ``host/rank``
        success                   whether it brought a result
        outcome                   what it counted as, of the ledger: ``success``, a kind of failure; ``outpaced`` or
                                  ``late`` where its result came after that of another attempt, or too late
        created, started, ended, received     when the Thinker made it, a worker began and ended it, the Thinker had
                                  its result; UNIX s, NA where it never ran
        server_s                  Thinker -> task server
        queue_s                   task server -> worker begins: the way there, and waiting for a worker
        compute_s                 on the worker, less the next
        store_s                   on the worker, fetching from stores and putting into them
        return_s                  worker ended -> task server
        notify_s                  task server -> Thinker
        message_bytes             of its messages, both ways
        payload_bytes, store      of what it put into its store, and the backend
        rss_bytes                 the most memory that its worker had resident until then; NA where nobody looked
        ========================  =====================================================================

        Where worker and submit host have clocks of their own, ``queue_s`` and ``return_s`` are off by the difference.
        """
        columns = [
            "topic", "task_id", "attempt", "executor", "site", "worker", "success", *TIMES, "store_s",
            "message_bytes", "payload_bytes", "store", "rss_bytes",
        ]  # fmt: skip
        rows = [row for topic in FILES for row in map(_task_of(topic), self.lines(topic))]
        found = pd.DataFrame(rows, columns=columns)
        found = _typed(found, ids=("rss_bytes",), numbers=(*TIMES, "store_s"))
        tried = zip(found.task_id, found.attempt, strict=True)
        found.insert(7, "outcome", pd.Series([self._outcomes.get(each) for each in tried], found.index, object))
        found["server_s"] = found.input_received - found.created
        found["queue_s"] = found.compute_started - found.input_received
        found["compute_s"] = found.compute_ended - found.compute_started - found.store_s.fillna(0.0)
        found["return_s"] = found.task_received - found.compute_ended
        found["notify_s"] = found.result_received - found.task_received
        names = {"compute_started": "started", "compute_ended": "ended", "result_received": "received"}
        return found.rename(columns=names).drop(columns=["input_received", "task_received"])

    @cached_property
    def inferences(self) -> pd.DataFrame:
        """Inferences, in their order; index ``reference_number`` (from 1).

        ========================  =====================================================================
        task_id, model_version    its task, and the model that embedded (0: pretrained, or principal components)
        segments, simulated_ns    how many were looked at so far, and how long they are in all, ns
        n_frames, n_reference     looked at now; in the reference set afterwards
        coverage                  cells visited so far
        novelty                   mean over the segments looked at now; NA without a model
        smallest_rmsd_nm          to a target so far, nm; NA without one
        received                  UNIX s
        ========================  =====================================================================
        """
        lengths, looked, length, rows = self.segments.simulated_ps.to_dict(), 0, 0.0, []
        for line in self.counted("infer"):
            info = line["task_info"]
            if "coverage" not in info:
                continue
            new = info.get("segment_ids", ())
            looked += len(new)
            length += sum(lengths.get(segment_id, 0.0) for segment_id in new) / 1000
            novelty = [value for value in info.get("novelty") or () if value is not None]
            rows.append(
                (
                    *map(info.get, ("reference_number", "task_id", "model_version")), looked, length,
                    *map(info.get, ("n_frames", "n_reference", "coverage")),
                    float(np.mean(novelty)) if novelty else None, info.get("smallest_rmsd_nm"),
                    line["timestamp"].get("result_received"),
                )
            )  # fmt: skip
        columns = [
            "reference_number", "task_id", "model_version", "segments", "simulated_ns", "n_frames", "n_reference",
            "coverage", "novelty", "smallest_rmsd_nm", "received",
        ]  # fmt: skip
        found = _typed(pd.DataFrame(rows, columns=columns), numbers=("coverage", "novelty", "smallest_rmsd_nm"))
        return found.set_index("reference_number")

    @cached_property
    def looks(self) -> pd.DataFrame:
        """When segments were first looked at; index ``segment_id``.

        ``model_version`` of the model that embedded them, ``novelty`` (mean over their frames among all known then;
        NA without a model), ``reference_number`` of the inference.
        """
        rows = [
            (segment_id, info["model_version"], novelty, info["reference_number"])
            for line in self.counted("infer")
            for info in (line["task_info"],)
            for segment_id, novelty in zip(info.get("segment_ids", ()), info.get("novelty") or (), strict=False)
        ]
        columns = ["segment_id", "model_version", "novelty", "reference_number"]
        found = _typed(pd.DataFrame(rows, columns=columns), ids=("segment_id", "model_version"), numbers=("novelty",))
        return found.drop_duplicates("segment_id").set_index("segment_id")

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Losses of every training, a row for each epoch.

        ``model_version``, ``epoch`` (from 1), ``n_frames`` it was trained on, and the losses by their names: an
        autoencoder has ``reconstruction``, ``critic`` and ``adversarial``, means over the epoch's batches.
        """
        parts = []
        for line in self.counted("train"):
            info = line["task_info"]
            if info.get("losses"):
                part = pd.DataFrame(info["losses"])
                part.insert(0, "n_frames", info["n_frames"])
                part.insert(0, "epoch", np.arange(1, len(part) + 1))
                part.insert(0, "model_version", info["model_version"])
                parts.append(part)
        return (
            pd.concat(parts, ignore_index=True)
            if parts
            else pd.DataFrame(columns=["model_version", "epoch", "n_frames"])
        )

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """Every attempt of the ledger, those that never came back included.

        ``kind``, ``task_id``, ``attempt`` (from 1), ``site``, ``host``, ``worker`` (rank), ``started`` (when it was
        sent) and ``ended`` (when the ledger knew; UNIX s), ``outcome`` (``success``, a kind of failure, ``abandoned``
        by a process that ended, ``outpaced`` by another attempt; NA while it runs), ``error`` (with its traceback).
        """
        return self.query(
            "SELECT kind, task_id, number AS attempt, site, host, worker, started, ended, outcome, error"
            " FROM attempt JOIN task ON id = task_id ORDER BY attempt.rowid"
        )

    @cached_property
    def walkers(self) -> pd.DataFrame:
        """Walkers of weighted ensembles, of every iteration that ended.

        ``replica``, ``iteration`` (from 1), ``walker``, ``segment_id``, ``weight`` (they sum to 1 in an iteration),
        ``parent`` (walker of the iteration before; negative: an initial state), ``bin``, ``recycled_to`` (NA but
        where it reached the target), ``seconds`` (wall time).
        """
        return self.query(
            "SELECT replica, iteration, walker, segment_id, weight, parent, bin, recycled_to, seconds FROM walker"
            " ORDER BY replica, iteration, walker",
            missing="walker",
        )

    @cached_property
    def iterations(self) -> pd.DataFrame:
        """Iterations of weighted ensembles that ended.

        ``replica``, ``iteration``, ``model_version`` of the coordinate, ``n_walkers``, ``flux_per_ps`` (weight that
        reached the target in a time, 1/ps), ``ended`` (UNIX s).
        """
        found = self.query(
            "SELECT replica, iteration, model_version, n_walkers, flux AS flux_per_ps, ended FROM iteration"
            " ORDER BY replica, iteration",
            missing="iteration",
        )
        if len(found):
            # The ledger has that of each iteration, which is one segment of each walker, all of them equally long.
            found["flux_per_ps"] /= float(self.segments.simulated_ps.median())
        return found

    @cached_property
    def pcoords(self) -> pd.DataFrame:
        """Progress coordinates of walkers of weighted ensembles, a row for each point, of every iteration that ended.

        ``replica``, ``iteration``, ``walker``, ``point`` (0: where the walker began; then its frames), ``weight``,
        and ``pcoord0``, ``pcoord1``, ...: degrees for phi and psi, nm for positions and RMSD, no unit for an
        embedding.
        """
        found = self.query(
            "SELECT replica, iteration, walker, weight, n_dimensions, pcoord FROM walker"
            " JOIN iteration USING (replica, iteration) ORDER BY replica, iteration, walker",
            missing="walker",
        )
        columns = ["replica", "iteration", "walker", "point", "weight"]
        if found.empty:
            return pd.DataFrame(columns=columns)
        n_dimensions = int(found.n_dimensions.iloc[0])
        each = [unpack_pcoord(packed, n_dimensions) for packed in found.pcoord]
        points = np.concatenate([np.arange(len(rows)) for rows in each])
        table = found.loc[found.index.repeat(list(map(len, each)))].reset_index(drop=True).assign(point=points)
        values = np.concatenate(each)
        return table[columns].assign(**{f"pcoord{k}": values[:, k] for k in range(n_dimensions)})

    @cached_property
    def system(self) -> PreparedSystem:
        """The prepared system, as workers have it."""
        return RunDirectory.open(self.path).read_system()

    @cached_property
    def reference(self) -> ReferenceSet | None:
        """The newest reference set: a uniform sample of all frames seen, with its embeddings; None before any."""
        from tasks.reference import ReferenceSet

        for path in sorted(self.path.glob("models/reference-*.npz"), reverse=True):
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    return ReferenceSet.from_arrays(dict(arrays))
            except FileNotFoundError:
                continue  # A running campaign keeps the newest two.
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise BadInput(f"{path} cannot be read ({error}): restore it from a copy") from error
        return None

    def frames(self, segment_id: int) -> np.ndarray:
        """Return the frames of a segment's trajectory, also of one in an archive.

        The start frame is not among them: the first is one interval later.

        Returns
        -------
        ndarray of shape (n_frames, n_stored, 3), float32
            Of the atoms ``system.stored_indices``, in nm.

        Raises
        ------
        BadInput
            When it has none, or it cannot be read.
        """
        return read_positions(trajectory_path(self.path, int(segment_id)))

    def query(self, sql: str, missing: str | None = None) -> pd.DataFrame:
        """Return rows of the ledger, which cannot be written that way.

        Parameters
        ----------
        missing
            A table that an older version's ledger may lack: without it there are no rows.
        """
        with read_ledger(self.path / LEDGER) as db:
            if missing is not None:
                told = "SELECT count(*) FROM sqlite_master WHERE name = ?"
                if not db.execute(told, (missing,)).fetchone()[0]:
                    return pd.DataFrame()
            try:
                return pd.read_sql_query(sql, db)
            except pd.errors.DatabaseError as error:
                raise BadInput(
                    f"ledger {self.path / LEDGER} cannot be read ({error.__cause__ or error}): restore it from a copy"
                ) from error

    def lines(self, topic: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of a topic's trace as they are, Colmena's `Result` without inputs and value.

        Raises
        ------
        BadInput
            When a line before the last is no JSON.
        """
        path = self.path / FILES[topic]
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    if not line.endswith(b"\n"):
                        return  # half written
                    raise BadInput(f"{path}, line {number}, is no JSON ({error}): restore it from a copy") from error

    def counted(self, topic: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of results that counted.

        Of a task that was tried elsewhere as well, or given up, the slower attempt may bring a result too.
        """
        for line in self.lines(topic):
            info = line["task_info"]
            tried = info.get("task_id", info.get("segment_id")), info.get("attempt")
            if line["success"] and self._outcomes.get(tried) in (None, "success"):
                yield line

    @cached_property
    def _outcomes(self) -> dict[tuple[int, int], str | None]:
        """How the attempts of the ledger ended, by task and attempt."""
        with read_ledger(self.path / LEDGER) as db:
            rows = db.execute("SELECT task_id, number, outcome FROM attempt")
            return {(task_id, number): outcome for task_id, number, outcome in rows}

    def _json(self, name: str) -> Mapping[str, Any]:
        path = self.path / name
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} cannot be read ({error}): restore it from a copy") from error
        return found


def _task_of(topic: str) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    def task(line: dict[str, Any]) -> tuple[Any, ...]:
        info, times, seconds = line["task_info"], line["timestamp"], line["task_info"].get("seconds") or {}
        return (
            topic, info.get("task_id", info.get("segment_id")), info.get("attempt"), info.get("executor"),
            info.get("site"), worker_of(line), line["success"], *map(times.get, TIMES),
            seconds.get("fetch", 0.0) + seconds.get("ship", 0.0), sum((line.get("message_sizes") or {}).values()),
            info.get("payload_bytes", 0), _store(info), info.get("worker_rss_bytes"),
        )  # fmt: skip

    return task


def _store(info: Mapping[str, Any]) -> str | None:
    """Return the backend that had a result's arrays; earlier traces only tell whether there was any."""
    found: str | None = info.get("store", "inline" if info.get("proxied") is False else None)
    return found


def _typed(frame: pd.DataFrame, ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Return it with integers that may be missing, and floats, where columns of objects were."""
    kinds: dict[str, Any] = {**dict.fromkeys(ids, "Int64"), **dict.fromkeys(numbers, float)}
    return frame.astype(kinds)
