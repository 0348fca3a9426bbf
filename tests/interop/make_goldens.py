"""What transformers computes, as files: `tests/golden/gpt2`. Needs the extra `peers`.

  python tests/interop/make_goldens.py

Made with transformers 5.24.0 and torch 2.13.0 on a CPU. Tiny GPT-2s of odd shapes with random
weights; of each its directory as `save_pretrained` writes it, and `expected.npz`: logits, gradients
of the mean cross-entropy, greedy and beam search continuations. And `processors.npz`: what the
logits processors make of the same logits.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as processors

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2"
MODELS = {
    "plain": dict(vocab_size=37, n_positions=32, n_embd=24, n_layer=2, n_head=3),
    "exact_gelu": dict(
        vocab_size=61,
        n_positions=29,
        n_embd=20,
        n_layer=1,
        n_head=1,
        n_inner=28,
        activation_function="gelu",
        layer_norm_epsilon=1e-3,
    ),
    "untied": dict(
        vocab_size=50,
        n_positions=40,
        n_embd=16,
        n_layer=3,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        tie_word_embeddings=False,
    ),
}
NEW = 20
BEAMS = {
    "beam3": dict(num_beams=3),
    "beam4_early": dict(num_beams=4, early_stopping=True, num_return_sequences=2),
    "beam3_never": dict(num_beams=3, early_stopping="never", length_penalty=2.0),
    "beam2_short": dict(num_beams=2, length_penalty=-1.0),
}


def make_model(seed: int, config: dict) -> GPT2LMHeadModel:
    """A model whose every tensor is random: a bias of zeros would hide that it was misplaced."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=1, eos_token_id=3)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            centre = 1.0 if ".ln" in name and name.endswith("weight") else 0.0
            x.copy_(centre + 0.2 * torch.randn(x.shape))
    return model


def expected(model: GPT2LMHeadModel) -> dict[str, np.ndarray]:
    vocab = model.config.vocab_size
    tokens = torch.randint(4, vocab, (2, 12))
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, vocab), tokens[:, 1:].reshape(-1)
    ).backward()
    found = {"tokens": tokens.numpy(), "logits": logits.detach().numpy()}
    for name, x in model.named_parameters():
        if x.ndim == 1 or "wpe" in name:
            found[f"grad/{name}"] = x.grad.numpy()
        found[f"norm/{name}"] = x.grad.norm().numpy()
    shared = dict(max_new_tokens=NEW, do_sample=False, pad_token_id=0, use_cache=True)
    prompt = tokens[:, :5]
    mask = torch.ones_like(prompt)
    greedy = model.generate(prompt, attention_mask=mask, eos_token_id=None, **shared)
    found["greedy"] = greedy.numpy()
    end = int(greedy[0, 12])  # an end that is met, and one that ends other beams at other times
    found["end"] = np.int32(end)
    for name, options in BEAMS.items():
        made = model.generate(
            prompt,
            attention_mask=mask,
            eos_token_id=end,
            return_dict_in_generate=True,
            output_scores=True,
            **{**shared, **options},
        )
        found[f"{name}/sequences"] = made.sequences.numpy()
        found[f"{name}/scores"] = made.sequences_scores.numpy()
    return found


def processed() -> dict[str, np.ndarray]:
    torch.manual_seed(7)
    vocab, length = 30, 14
    logits = 3 * torch.randn(4, vocab)
    seen = torch.randint(0, 5, (4, length))
    prompt = 6
    chains = {
        "temperature": [processors.TemperatureLogitsWarper(0.7)],
        "top_k": [processors.TopKLogitsWarper(5)],
        "top_p": [processors.TopPLogitsWarper(0.8)],
        "min_p": [processors.MinPLogitsWarper(0.2)],
        "repetition_penalty": [processors.RepetitionPenaltyLogitsProcessor(1.3)],
        "no_repeat_ngram_1": [processors.NoRepeatNGramLogitsProcessor(1)],
        "no_repeat_ngram_2": [processors.NoRepeatNGramLogitsProcessor(2)],
        "no_repeat_ngram_3": [processors.NoRepeatNGramLogitsProcessor(3)],
        "bad_words": [
            processors.NoBadWordsLogitsProcessor(
                [[9], [int(seen[0, -1]), 11], [*seen[1, -2:].tolist(), 12], [1, 2, 3, 4]]
            )
        ],
        "min_new_tokens": [
            processors.MinNewTokensLengthLogitsProcessor(prompt, 9, torch.tensor([3, 8]))
        ],
    }
    chains["all"] = [
        *chains["repetition_penalty"],
        *chains["no_repeat_ngram_2"],
        *chains["bad_words"],
        *chains["min_new_tokens"],
        *chains["temperature"],
        processors.TopKLogitsWarper(12),
        *chains["top_p"],
        processors.MinPLogitsWarper(0.05),
    ]
    found = {"logits": logits.numpy(), "seen": seen.numpy(), "prompt": np.int32(prompt)}
    for name, chain in chains.items():
        x = logits.clone()
        for processor in chain:
            x = processor(seen, x)
        found[f"to/{name}"] = x.numpy()
    return found


def main() -> None:
    for seed, (name, config) in enumerate(MODELS.items()):
        model = make_model(seed, config)
        model.save_pretrained(GOLDEN / name)
        np.savez_compressed(GOLDEN / name / "expected.npz", **expected(model))
    np.savez_compressed(GOLDEN / "processors.npz", **processed())


if __name__ == "__main__":
    main()
