"""The evaluation `translation`: targets that the model writes for the sources of a split, beside
the references.

    config.evals.bleu = evaluation("translation", split="test", every="never", num_beams=4)

Every source is decoded, by greedy search or by beams, split over all devices. Of the split its
texts alone are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from aigc_jax import rng
from aigc_jax.data.sides import of_side
from aigc_jax.data.text_pairs import PADDING
from aigc_jax.errors import UserError, lookup, names_in
from aigc_jax.experiment import Experiment
from aigc_jax.sample import Sampler, right_aligned
from aigc_jax.tasks.task import Settings, TrainState

METRICS = ("bleu", "chrf", "exact_match")
TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Of sacrebleu's, those that need no further package and no download."""


def translation(experiment: Experiment, name: str) -> tuple:
    """BLEU and chrF (0 to 100) of the whole split, as sacrebleu computes them of detokenised texts,
    and `exact_match`, the share of hypotheses that are their reference, character by character.

    Returns:
        The names of the values; `evaluate(state, beat)`; what the values are measured on, with
        sacrebleu's signatures; and `examples()`, of each pair of the last evaluation its `id`, its
        place in the split, `source`, `reference` and `hypothesis`.

    Raises:
        UserError: the data are no pairs of texts, a setting is wrong, or sacrebleu is missing.
    """
    config, key = experiment.config, f"config.evals.{name}"
    task: Any = experiment.task
    settings, data = config.evals[name], experiment.eval_split(name)
    if "target" not in data.features:
        raise UserError(
            f"{key}: translation is of pairs of texts (task seq2seq); {data.name} holds none"
        )
    names = names_in(METRICS, settings.metrics, f"{key}.metrics")
    lookup(dict.fromkeys(TOKENIZERS), settings.tokenize, f"{key}.tokenize")
    scores, signatures = scorers(names, settings.lowercase, settings.tokenize)
    tokenizer, model = data.tokenizer, task.model
    assert tokenizer is not None
    longest = min(settings.max_new_tokens or model.block_size, model.block_size)
    batch = min(settings.batch_size or config.data.eval_batch_size, data.size)
    sampler = Sampler(experiment, Settings("samples", longest, settings.num_beams), chunk=batch)
    if settings.num_beams > 1:
        decoding = f"beam search, {settings.num_beams} beams"
        inputs = {"length_penalty": np.float32(settings.length_penalty)}
    else:
        decoding, inputs = "greedy", {"temperature": np.float32(0.0)}

    def sides(side: str) -> Iterator[str]:
        decode = of_side(tokenizer, side).decode
        for start in range(0, data.size, batch):
            ids = np.arange(start, min(start + batch, data.size))
            yield from (decode(row[row != PADDING]) for row in data.fetch(ids)[side])

    def sources(ids: np.ndarray) -> dict[str, np.ndarray]:
        rows = [row[row != PADDING] for row in data.fetch(ids)["source"]]
        tokens, lengths = right_aligned(rows, data.features["source"].shape[0])
        return {"tokens": tokens, "lengths": lengths}

    hypotheses: list[str] = []

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        hypotheses.clear()
        noise = rng.stream_key(config.seed, "generate")  # nothing is drawn from it
        for chunk in sampler(state, noise, data.size, inputs, sources, beat):
            for row, begin, end in zip(chunk["tokens"], chunk["begin"], chunk["end"]):
                hypotheses.append(tokenizer.decode(row[begin:end]))
        references = list(sides("target"))
        return {word: score(hypotheses, references) for word, score in scores.items()}

    def examples() -> Iterator[dict[str, Any]]:
        texts = zip(sides("source"), sides("target"), hypotheses)
        for number, (source, reference, hypothesis) in enumerate(texts):
            yield {
                "id": number,
                "source": source,
                "reference": reference,
                "hypothesis": hypothesis,
            }

    card = {
        "decoding": decoding,
        **({"length_penalty": settings.length_penalty} if settings.num_beams > 1 else {}),
        "max_new_tokens": longest,
        "pairs": data.about,
        "texts": "decoded from their tokens, not tokenised or cased otherwise",
        **({"signatures": signatures} if signatures else {}),
    }
    return names, evaluate, card, examples


Score = Callable[[Sequence[str], Sequence[str]], float]  # of hypotheses and references


def scorers(
    names: Sequence[str], lowercase: bool = False, tokenize: str = "13a"
) -> tuple[dict[str, Score], dict[str, str]]:
    """What computes each of `METRICS` that is named, and sacrebleu's signatures of those it has."""
    found: dict[str, Score] = {"exact_match": exact_match}
    signatures = {}
    if {"bleu", "chrf"} & set(names):
        try:
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.metrics.chrf import CHRF
        except ImportError:
            raise UserError(
                "BLEU and chrF are computed by sacrebleu, which is missing; run: pip install "
                "sacrebleu"
            ) from None
        made = {
            "bleu": BLEU(lowercase=lowercase, tokenize=tokenize),
            "chrf": CHRF(lowercase=lowercase),
        }
        for name, metric in made.items():
            found[name] = lambda texts, references, metric=metric: float(
                metric.corpus_score(texts, [references]).score
            )
            found[name](["a"], ["a"])  # a signature counts the references that were seen
            signatures[name] = str(metric.get_signature())
    return {name: found[name] for name in names}, {
        n: signatures[n] for n in names if n in signatures
    }


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """The share of hypotheses that are their reference."""
    same = [a == b for a, b in zip(hypotheses, references, strict=True)]
    return sum(same) / len(same)
