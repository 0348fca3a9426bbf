"""The door for Python: a run in a work directory as an object."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from aigc_jax import keys, tasks
from aigc_jax.config import Config, from_json
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.resume import experiment_of, restore
from aigc_jax.run.files import read_json, read_lines
from aigc_jax.sample import FROM_DATA, gather, sample_chunks
from aigc_jax.tasks.task import Settings, TrainState


class Run:
    """A run that `aigc train` made. Nothing of it is changed; what takes time is done when asked.

    Attributes:
        workdir: its directory.
        config: complete.
    """

    def __init__(self, workdir: Path, *, best: bool = False):
        self.workdir, self._best = workdir, best
        path = workdir / "config.json"
        if not path.is_file():
            raise UserError(f"{workdir} holds no run (no config.json); run `aigc train` first")
        self.config: Config = tasks.complete(from_json(read_json(path)))

    @cached_property
    def experiment(self) -> Experiment:
        """The run's task and step functions, built from what the checkpoint says of the data."""
        return experiment_of(self.config, self.workdir)

    @cached_property
    def state(self) -> TrainState:
        """The state of the checkpoint."""
        return restore(self.experiment, self.workdir, best=self._best)

    @cached_property
    def inference(self) -> TrainState:
        """The state to evaluate and generate with: moving averages where the run keeps them. With
        several seeds it is that of the first."""
        return self.experiment.compile_inference()(self.experiment.run_of(self.state))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters to evaluate and generate with, by network, as numpy arrays."""
        networks = self.inference.networks.items()
        return {name: jax.device_get(net.variables()["params"]) for name, net in networks}

    def generate(
        self,
        num: int = 0,
        *,
        kind: str = "samples",
        seed: int = 0,
        prompt: str = "",
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        labels: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Samples: `{"image": [num, height, width, channels] in [0, 1]}`, `{"point": [num, 2]}` or
        `{"tokens": [num, length], "text": list of str}`; of a model with classes `label` too. The
        arguments are those of `aigc generate`.

        Raises:
            UserError: an argument is out of its range (`keys.GENERATE`), or is not for this run.
        """
        keys.check_asked(kind=kind, num=num, seed=seed, prompt=prompt)
        keys.check_asked(max_new_tokens=max_new_tokens)
        keys.check_asked(temperature=temperature, top_k=top_k, top_p=top_p)
        num, seed, max_new_tokens = int(num), int(seed), int(max_new_tokens)  # of NumPy's, too
        experiment = self.experiment
        if prompt and experiment.data.tokenizer is None:
            raise UserError(f"prompt is for text; this run makes images ({experiment.data.name})")
        if kind in FROM_DATA:
            experiment = experiment_of(self.config, self.workdir, with_data=True)
        tokenizer = experiment.data.tokenizer
        text = {"temperature": float(temperature), "top_k": int(top_k), "top_p": float(top_p)}
        text = {} if tokenizer is None else text
        make, _ = sample_chunks(
            experiment, Settings(kind, max_new_tokens), num, seed, prompt, text, labels
        )
        samples: dict[str, Any] = gather(make(self.inference))
        if tokenizer is not None:
            tokens = samples["tokens"]
            begin = samples.get("begin", [0] * len(tokens))  # of what is text in a row
            end = samples.get("end", [tokens.shape[1]] * len(tokens))
            samples["text"] = [tokenizer.decode(t[b:e]) for t, b, e in zip(tokens, begin, end)]
        return samples

    def evaluate(self) -> dict[str, float]:
        """The values of all evaluations of the config, as `EVALUATION/METRIC`."""
        experiment = experiment_of(self.config, self.workdir, with_data=True)
        evaluations = make_evaluations(experiment)
        return Evaluator(experiment, evaluations)(self.state, evaluations)

    def metrics(self) -> list[dict[str, Any]]:
        """What the run has logged, a row for each line: `pandas.DataFrame(run.metrics())`. `phase`
        tells lines of training (`train`) and of evaluations (`eval`) apart.

        Where a run went on after a hard stop, steps were logged twice; the later line is taken.
        """
        lines = read_lines(self.workdir / "metrics.jsonl")
        return list({(line["step"], line.get("phase")): line for line in lines}.values())

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}, task {self.config.task.name})"
