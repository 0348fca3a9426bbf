"""Texts of a run: prompts, options and the run's tokenizer around `generate.text`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import rng
from aigc_jax.data import encoding
from aigc_jax.data.roles import RoleTokenizer
from aigc_jax.errors import UserError, printable
from aigc_jax.experiment import Experiment
from aigc_jax.generate.options import Options, make
from aigc_jax.generate.stop_strings import added_text
from aigc_jax.generate.text import Text, TextGenerator, beyond_context
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.sharding import batch_sharding
from aigc_jax.progress import bar
from aigc_jax.run.files import read_optional
from aigc_jax.run.observe import echo
from aigc_jax.tasks.task import TrainState

CHUNK = 100  # texts made at once
GENERATION = Path("huggingface", "generation_config.json")  # of an imported model


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one a line.

    Raises:
        UserError: it cannot be read, is no text, or a line is empty.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the prompts in {path}: {error}") from None
    lines = encoding.decode(content, str(path)).removesuffix("\n").split("\n")
    if lines == [""]:
        raise UserError(f"{path} holds no prompts; write one a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{path}, line {number}: the prompt is empty")
    return lines


class Texts:
    """What generates the texts that are asked for, compiled once for any prompts.

    Attributes:
        options: complete.
        prompts: tokens of the prompts.
        num: texts in all, those of one prompt side by side.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        given: Mapping[str, Any],
        prompts: Sequence[str] = (),
        num: int = 0,
        *,
        kind: str = "samples",
        stream: bool = False,
    ):
        """
        Args:
            experiment: of the run, its tokenizer known.
            workdir: of the run; of an imported model it says which tokens end a text, otherwise
                the tokenizer does, if it has one that ends documents.
            given: options by name, see `generate.options.Options`; None stands for the default.
            prompts: texts to go on from; none starts anew, from token 0. In a dialogue they are
                what the user says, and a text is the reply.
            num: how many texts of one prompt, 0 for `num_return_sequences`.
            kind: one of the task's `kinds`.
            stream: whether tokens are to come one by one.

        Raises:
            UserError: an option is wrong, or a prompt cannot be encoded.
        """
        task, tokenizer = experiment.task, experiment.data.tokenizer
        assert tokenizer is not None
        model: Any = getattr(task, "model", None)
        if not hasattr(model, "init_cache"):
            raise UserError(f"task {experiment.config.task.name} does not write texts")
        if kind not in task.kinds:
            raise UserError(
                f'task {experiment.config.task.name} cannot generate "{printable(kind)}"; '
                f"it makes: {', '.join(task.kinds)}"
            )
        given = {name: value for name, value in given.items() if value is not None}
        if "eos_token_id" not in given:
            stored = read_optional(workdir / GENERATION).get("eos_token_id")
            if isinstance(tokenizer, RoleTokenizer) or stored is None:
                stored = getattr(tokenizer, "end_token", None)
            ends = stored if isinstance(stored, list) else [stored]
            numbers = [x for x in ends if isinstance(x, int) and not isinstance(x, bool)]
            given["eos_token_id"] = [end for end in numbers if 0 <= end < model.vocab_size]
        self.options: Options = make(given, model.vocab_size, stream)
        if num and self.options.num_return_sequences > 1:
            raise UserError(
                f"num={num} and num_return_sequences={self.options.num_return_sequences} both say "
                "how many texts; leave one of them out"
            )
        if isinstance(tokenizer, RoleTokenizer):
            self.prompts = [*map(tokenizer.frame, prompts)] or [tokenizer.start]
        else:
            self.prompts = [*map(tokenizer.encode, prompts)] or [np.zeros(1, np.int32)]
        cut = beyond_context(self.prompts, self.options, model.block_size)
        if cut:
            echo(cut)
        each = num or self.options.num_return_sequences
        if self.options.greedy and self.options.num_beams == 1:
            self._each = each  # all the same, as many as were asked for
        elif self.options.num_beams > 1:
            if num > 1:
                raise UserError("num is for drawing; of beams ask for num_return_sequences")
            self._each = 1
        else:
            self._each = each
        self.num = len(self.prompts) * each
        self._decode = tokenizer.decode
        self._experiment = experiment
        self._generator = TextGenerator(model)

    def __call__(
        self, state: TrainState, seed: int = 0, beat: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Chunks of texts: `tokens` `[num, length]`, each row a prompt, its new tokens and then
        its end token again; `begin` and `end` of the text in its row; `lengths` of what is new; and
        `log_probs` `[num, max_new_tokens]` or `scores`, where there are some.

        Args:
            state: an `inference_state`.
            seed: of the draws.
            beat: called after every chunk.
        """
        variables, place = self._placed(state)
        key, rows = rng.stream_key(seed, "generate"), len(self.prompts) * self._each
        width = max(map(len, self.prompts)) + self.options.max_new_tokens
        generator = self._generator
        with bar(total=rows, desc="generating", unit="text") as shown:
            for start in range(0, rows, CHUNK):
                ids = list(range(start, min(start + CHUNK, rows)))
                prompts = [self.prompts[i // self._each] for i in ids]
                with place():
                    texts = generator(variables, prompts, self.options, key, ids, self._decode)
                beat()
                shown.update(len(ids))
                yield self._arrays(texts, width)

    def stream(self, state: TrainState, seed: int = 0) -> Iterator[str]:
        """The text of the first prompt as it grows, piece by piece; the prompt is not among them.
        A character of several tokens comes when it is whole."""
        variables, place = self._placed(state)
        key, told, tokens = rng.stream_key(seed, "generate"), "", []
        with place():
            steps = self._generator.stream(
                variables, self.prompts[:1], self.options, key, None, self._decode
            )
            for (token,) in steps:
                if token is None:
                    break
                tokens.append(token)
                text = added_text(self.prompts[0], np.asarray(tokens, np.int32), self._decode)
                if not text.endswith("�"):
                    yield text[len(told) :]
                    told = text
        yield added_text(self.prompts[0], np.asarray(tokens, np.int32), self._decode)[len(told) :]

    def _placed(self, state: TrainState):
        """The parameters, and the mesh to be set while they are used. Few texts are for one device:
        several would all do the same work."""
        mesh = self._experiment.mesh
        variables = state.networks["model"].variables()
        rows, shards = len(self.prompts) * self._each, batch_shards(mesh)
        whole = all(x.is_fully_replicated for x in jax.tree.leaves(variables))
        if jax.process_count() == 1 and whole and rows < shards:
            variables = jax.device_put(variables, mesh.devices.flat[0])
            return variables, lambda: jax.default_device(mesh.devices.flat[0])
        if jax.process_count() == 1:
            self._generator.split = (batch_sharding(mesh), shards)
        return variables, lambda: jax.sharding.use_abstract_mesh(mesh.abstract_mesh)

    def _arrays(self, texts: list[Text], width: int) -> dict[str, np.ndarray]:
        fill = self.options.eos_token_id[0] if self.options.eos_token_id else 0
        tokens = np.full((len(texts), width), fill, np.int32)
        for row, text in zip(tokens, texts):
            row[: len(text.tokens)] = text.tokens
        found = {
            "tokens": tokens,
            "begin": np.zeros(len(texts), np.int32),
            "end": np.array([len(text.tokens) for text in texts], np.int32),
            "lengths": np.array([text.new for text in texts], np.int32),
        }
        if texts[0].log_probs is not None:
            kept = np.zeros((len(texts), self.options.max_new_tokens), np.float32)
            for row, text in zip(kept, texts):
                row[: text.new] = text.log_probs
            found["log_probs"] = kept
        if texts[0].score is not None:
            found["scores"] = np.array([text.score for text in texts], np.float32)
        return found
