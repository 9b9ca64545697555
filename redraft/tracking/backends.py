"""The trackers: each is opened with the run, its recipe and the step that it goes on from, and takes entries in order.

A run that is resumed from a checkpoint plays some steps again. TensorBoard hides what the first play wrote. The others
cannot take back what they were told, so they keep it, and are told nothing again.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

    from redraft.recipe import Recipe
    from redraft.run import Run
    from redraft.tracking.queue import TrackedLine


class TensorBoard:
    """Event files in RUN/tensorboard, one for each incarnation of the run, and each time that the learner goes back.

    They are written here and not by tensorboardX's SummaryWriter, whose thread ends at the first error, such as a full
    disk, without a word; from then on its callers would wait for ever.
    """

    def __init__(self, run: Run, recipe: Recipe, step: int):
        self._folder, self._recipe, self._last = run.folder / "tensorboard", recipe.dump(), step
        self._file: EventsWriter | None = self._open()

    def _open(self) -> EventsWriter:
        """A new file, which hides what others say of later steps. Leaves none when the disk is full."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]  generated
        from tensorboardX.summary import text

        self._folder.mkdir(exist_ok=True)
        ending = f".{len(list(self._folder.iterdir()))}"
        file = EventsWriter(str(self._folder / "events"), ending)
        try:
            self._write(file, step=self._last + 1, session_log=SessionLog(status=SessionLog.START))
            self._write(file, step=self._last, summary=text("recipe", f"```yaml\n{self._recipe}```"))
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                file.close()
            for path in self._folder.glob(f"*{ending}"):
                path.unlink()
            raise
        return file

    def write(self, line: TrackedLine) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  generated

        if line.again and line.step <= self._last and self._file is not None:  # the learner has gone back
            self._file.close()
            self._file, self._last = None, line.step - 1
        file = self._file = self._file or self._open()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in line.values.items()]
        try:
            self._write(file, line.time_s, step=line.step, summary=Summary(value=values))
            file.flush()
        except OSError:  # the record may be corrupt: readers stop there, so the next one begins a new file
            with contextlib.suppress(OSError):
                file.close()
            self._file = None
            raise
        self._last = max(self._last, line.step)

    def close(self, state: str) -> None:
        if self._file is not None:
            self._file.close()

    @staticmethod
    def _write(file, time_s: float | None = None, **fields) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  generated

        file.write_event(Event(wall_time=time_s or time.time(), **fields))


EVALUATED = "evaluation/step"


class Wandb:
    """A run of Weights & Biases under the run's own id, so that a resumed run goes on there."""

    def __init__(self, run: Run, recipe: Recipe, step: int):
        import wandb  # pyright: ignore[reportMissingImports]  an extra

        settings = recipe.tracking.wandb
        assert settings is not None, "it was asked for"
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run.id,
            name=run.name,
            resume="allow",
            dir=str(run.folder),
            config=recipe.model_dump(mode="json"),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("evaluation/*", step_metric=EVALUATED)

    def write(self, line: TrackedLine) -> None:
        """What is logged at a step below the newest is dropped there, and the run may be ahead of an evaluation: so
        these have an axis of their own."""
        if line.evaluation:
            self._run.log(line.values | {EVALUATED: line.step}, commit=False)
        elif not line.again:
            self._run.log(line.values, step=line.step)

    def close(self, state: str) -> None:
        self._run.finish(exit_code=int(state == "failed"))


ENDS = {"done": "FINISHED", "stopped": "KILLED"}
PARAMS = 100  # most in one request of MLflow
PARAM_LENGTH = 500


class Mlflow:
    """A run of MLflow, whose id is kept in RUN/mlflow.json, so that a resumed run goes on there."""

    def __init__(self, run: Run, recipe: Recipe, step: int):
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]  an extra

        settings = recipe.tracking.mlflow
        assert settings is not None, "it was asked for"
        self._client = MlflowClient(tracking_uri=settings.uri)
        where = settings.model_dump()
        kept = run.folder / "mlflow.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if known.items() >= where.items():
            self._id = known["id"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._new(run, settings.experiment)
            run.write(kept.name, where | {"id": self._id})  # at once: what fails below is tried again
            self._describe(recipe)
        self._client.log_text(self._id, recipe.dump(), "recipe.yaml")

    def _new(self, run: Run, experiment: str) -> str:
        client = self._client
        found = client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else client.create_experiment(experiment)
        return client.create_run(where, run_name=run.name, tags={"redraft.run": run.id}).info.run_id

    def _describe(self, recipe: Recipe) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]  an extra

        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in _flat("", recipe.model_dump(mode="json"))]
        for begin in range(0, len(params), PARAMS):
            self._client.log_batch(self._id, params=params[begin : begin + PARAMS])

    def write(self, line: TrackedLine) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]  an extra

        if not line.again:
            at_ms = int(line.time_s * 1000)
            self._client.log_batch(
                self._id, metrics=[Metric(key, value, at_ms, line.step) for key, value in line.values.items()]
            )

    def close(self, state: str) -> None:
        self._client.set_terminated(self._id, ENDS.get(state, "FAILED"))


def _flat(prefix: str, values: dict):
    """("learner.optimizer.lr", 0.0005), ... of nested settings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


KINDS = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
