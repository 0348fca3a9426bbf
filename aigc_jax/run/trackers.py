"""Experiment trackers beside `metrics.jsonl`: Weights & Biases, MLflow, Trackio.

Each is one function that opens a run of its service and gives three functions back. They run in a
thread of their own: a service that is slow, down or gone costs a warning and never a step.
Services are chosen and reached as they themselves say: `WANDB_MODE=offline`, `WANDB_PROJECT`,
`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `TRACKIO_DIR`, `TRACKIO_SPACE_ID` and so on.
"""

import contextlib
import importlib.util
import math
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from aigc_jax.errors import UserError, first_line, names_in
from aigc_jax.run.files import read_optional, write_json

PROJECT = "aigc_jax"  # where the service's own variable names no other
CLOSING = 60.0  # seconds that a service has to take what is left at the end
_MOST = 10_000  # entries that wait for a service; further ones are dropped
_FILE = "trackers.json"  # the run of each service, so that a resumed run goes on in it


class Tracker(NamedTuple):
    """An open run of a service.

    Attributes:
        id: what `open` takes to go on with it.
        scalars: `(step, {name: finite value})`.
        image: `(step, name, pixels [height, width, channels] uint8)`.
        text: `(step, name, text)`.
        close: no more will come.
    """

    id: str
    scalars: Callable[[int, Mapping[str, float]], Any]
    image: Callable[[int, str, UInt8[np.ndarray, "height width channels"]], Any]
    text: Callable[[int, str, str], Any]
    close: Callable[[], Any]


def wandb(name: str, id: str, config: Mapping[str, Any], workdir: Path) -> Tracker:
    """Weights & Biases, https://docs.wandb.ai. Steps are the metric `step`: its own may not fall,
    and a run that goes on after a hard stop logs some steps again."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=name,
        id=id or uuid.uuid4().hex[:8],
        resume="allow",
        dir=str(workdir),
        config=dict(config),
        settings=wandb.Settings(console="off"),
    )
    run.define_metric("*", step_metric="step")

    def scalars(step, values):
        run.log({"step": step, **values})

    def image(step, name, pixels):
        run.log({"step": step, name: wandb.Image(_square(pixels))})

    def text(step, name, text):
        run.log({"step": step, name: wandb.Html(f"<pre>{_escaped(text)}</pre>")})

    return Tracker(run.id, scalars, image, text, run.finish)


def mlflow(name: str, id: str, config: Mapping[str, Any], workdir: Path) -> Tracker:
    """MLflow, https://mlflow.org/docs."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    if id:
        client.update_run(id, status="RUNNING")
    else:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else client.create_experiment(title)
        id = client.create_run(number, run_name=name).info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in config.items()]
        for first in range(0, len(params), 100):  # at once it takes no more
            client.log_batch(id, params=params[first : first + 100])

    def scalars(step, values):
        now = int(time.time() * 1000)
        client.log_batch(id, [Metric(name, value, now, step) for name, value in values.items()])

    def image(step, name, pixels):
        client.log_image(id, _square(pixels), f"{name}/{step}.png")

    def text(step, name, text):
        client.log_text(id, text, f"{name}/{step}.txt")

    return Tracker(id, scalars, image, text, lambda: client.set_terminated(id))


def trackio(name: str, id: str, config: Mapping[str, Any], workdir: Path) -> Tracker:
    """Trackio, https://huggingface.co/docs/trackio. It knows a run by its name."""
    import trackio

    id = id or f"{name}-{uuid.uuid4().hex[:8]}"
    with contextlib.redirect_stdout(sys.stderr):
        run = trackio.init(PROJECT, id, config=dict(config), resume="allow", embed=False)

    def scalars(step, values):
        run.log(dict(values), step)

    def image(step, name, pixels):
        run.log({name: trackio.Image(_square(pixels))}, step)

    def text(step, name, text):
        run.log({name: trackio.Markdown(f"```\n{text}\n```")}, step)

    def close():
        with contextlib.redirect_stdout(sys.stderr):
            run.finish()

    return Tracker(id, scalars, image, text, close)


TRACKERS: dict[str, Callable[[str, str, Mapping[str, Any], Path], Tracker]] = {
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
}
"""`config.train.trackers` names some. `(name of the run, id or "", config, workdir) -> Tracker`."""


def names(given: str) -> list[str]:
    """The trackers that `config.train.trackers` names, e.g. `wandb, mlflow`.

    Raises:
        UserError: one is not known, or its package is not installed.
    """
    found = names_in(TRACKERS, given, "config.train.trackers") if given.strip() else ()
    for name in found:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'config.train.trackers="{given}": {name} is not installed; run: pip install '
                '"aigc-jax[track]"'
            )
    return list(found)


class Trackers:
    """The trackers of a run, each in a thread."""

    def __init__(
        self, found: list[str], workdir: Path, config: Mapping[str, Any], say: Callable[[str], None]
    ):
        """
        Args:
            found: what `names` gave.
            workdir: of the run; it gives the name, and keeps the ids.
            config: every key and its value.
            say: takes a warning, one for each tracker at most.
        """
        lock = threading.Lock()
        self._workers = [_Worker(name, workdir, config, say, lock) for name in found]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name; those that are not finite are left out."""
        good = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._put("scalars", step, good)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture."""
        self._put("image", step, name, pixels)

    def text(self, step: int, name: str, text: str) -> None:
        """A text."""
        self._put("text", step, name, text)

    def close(self) -> None:
        """Waits until the services have everything, `CLOSING` seconds at most."""
        for worker in self._workers:
            worker.put(None)
        until = time.monotonic() + CLOSING
        for worker in self._workers:
            worker.join(until - time.monotonic())

    def _put(self, *call) -> None:
        for worker in self._workers:
            worker.put(call)


class _Worker:
    """One tracker: a queue and the thread that empties it."""

    def __init__(self, name, workdir, config, say, lock):
        self._name, self._workdir, self._config = name, workdir, config
        self._say, self._lock, self._warned = say, lock, False
        self._queue: queue.Queue = queue.Queue(_MOST)
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def put(self, call: tuple | None) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._warn("it is too slow")

    def join(self, seconds: float) -> None:
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            self._warn(f"it did not answer within {CLOSING:.0f} s")

    def _work(self) -> None:
        tracker = None
        try:
            tracker = self._open()
        except Exception as error:
            self._warn(first_line(error) or repr(error))
        while (call := self._queue.get()) is not None:
            if tracker is not None:
                self._try(getattr(tracker, call[0]), *call[1:])
        if tracker is not None:
            self._try(tracker.close)

    def _open(self) -> Tracker:
        path = self._workdir / _FILE
        id = read_optional(path).get(self._name, "")
        id = id if isinstance(id, str) else ""
        name, make = self._workdir.resolve().name, TRACKERS[self._name]
        made = make(name, id, self._config, self._workdir)
        with self._lock:
            write_json(path, {**read_optional(path), self._name: made.id})
        return made

    def _try(self, function: Callable, *args) -> None:
        try:
            function(*args)
        except Exception as error:  # services raise whatever they like
            self._warn(first_line(error) or repr(error))

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self._say(f"warning: {self._name} misses some of this run, which goes on: {why[:200]}")


def _square(pixels: UInt8[np.ndarray, "height width channels"]) -> np.ndarray:
    """As these libraries take pictures: grey without an axis of channels."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
