"""The door for Python: a run in a work directory as an object."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import bucket, keys, tasks
from aigc_jax.config import Config, from_json
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.generate.options import make as make_options
from aigc_jax.resume import experiment_of, restore
from aigc_jax.run.files import is_file, read_json, read_lines
from aigc_jax.sample import (
    FROM_DATA,
    check_labels,
    drawing,
    gather,
    sample_chunks,
    writes_texts,
)
from aigc_jax.tasks.task import Settings, TrainState
from aigc_jax.texts import Texts


class Run:
    """A run that `aigc train` made. Nothing of it is changed; what takes time is done when asked.

    Attributes:
        workdir: its directory.
        config: complete.
    """

    def __init__(self, workdir: Path, *, best: bool = False):
        self.workdir, self._best = workdir, best
        path = workdir / "config.json"
        if not is_file(path):
            raise UserError(
                f"{bucket.shown(workdir)} holds no run (no config.json); run `aigc train` first"
            )
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
        prompt: str | Sequence[str] = "",
        labels: Sequence[int] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """Samples: `{"image": [num, height, width, channels] in [0, 1]}`, `{"point": [num, 2]}` or
        `{"tokens": [num, length], "text": list of str, "lengths": [num], ...}` (`texts.Texts`); of
        a model with classes `label` too.

        Args:
            num, kind, seed, labels: those of `aigc generate`.
            prompt: a text to go on from, or several.
            options: of texts: `max_new_tokens`, `temperature`, `num_beams`, ...; see
                `generate.options.Options`.

        Raises:
            UserError: an argument is out of its range, or is not for this run.
        """
        several = isinstance(prompt, list | tuple)
        prompts: list[Any] = list(prompt) if several else [prompt]
        for number, one in enumerate(prompts):
            keys.check_asked(prompt=one)
            if several and not one:
                raise UserError(f"prompt[{number}] is empty; a text each is expected")
        keys.check_asked(kind=kind, num=num, seed=seed)
        keys.check_asked(**{name: x for name, x in options.items() if name in keys.GENERATE})
        num, seed = int(num), int(seed)  # of NumPy's, too
        options = {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}
        prompts = [p for p in prompts if p]
        experiment = self.experiment
        tokenizer = experiment.data.tokenizer
        if prompts and tokenizer is None:
            raise UserError(f"prompt is for text; this run makes images ({experiment.data.name})")
        if not writes_texts(experiment):
            made = make_options(options, 2**31)
            if kind in FROM_DATA:
                experiment = experiment_of(self.config, self.workdir, with_data=True)
            settings = Settings(kind, made.max_new_tokens)
            text = drawing(experiment, options)
            make, _ = sample_chunks(experiment, settings, num, seed, prompts, text, labels)
            samples: dict[str, Any] = gather(make(self.inference))
            if tokenizer is not None:
                tokens = samples["tokens"]
                begin = samples.get("begin", [0] * len(tokens))  # of what is text in a row
                end = samples.get("end", [tokens.shape[1]] * len(tokens))
                samples["text"] = [
                    tokenizer.decode(row[b:e]) for row, b, e in zip(tokens, begin, end)
                ]
            return samples
        assert tokenizer is not None
        check_labels(experiment, labels)
        texts = Texts(experiment, self.workdir, options, prompts, num, kind=kind)
        samples = gather(texts(self.inference, seed))
        samples["text"] = [
            tokenizer.decode(tokens[:end])
            for tokens, end in zip(samples["tokens"], samples.pop("end"))
        ]
        del samples["begin"]
        return samples

    def stream(self, prompt: str = "", *, seed: int = 0, **options: Any) -> Iterator[str]:
        """The text that `generate` would make of one prompt, piece by piece as it is drawn."""
        if self.experiment.data.tokenizer is None:
            raise UserError(f"this run makes images ({self.experiment.data.name}), no text")
        prompts = [prompt] if prompt else []
        texts = Texts(self.experiment, self.workdir, options, prompts, stream=True)
        return texts.stream(self.inference, seed)

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
        return f"Run({bucket.shown(self.workdir)!r}, task {self.config.task.name})"
