"""What transformers computes of BERT, as files: `tests/golden/bert`. Needs the extra `peers`.

  python tests/interop/make_bert_goldens.py

Made with transformers 5.24.0 and torch 2.13.0 on a CPU. Tiny BERTs of odd shapes with random
weights; of each its directory as `save_pretrained` writes it, and `expected.npz`: what the model
makes of padded texts of two token types, and gradients of the mean cross-entropy of their tokens.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

GOLDEN = Path(__file__).parent.parent / "golden" / "bert"
MODELS = {
    "masked": (
        BertForMaskedLM,
        dict(
            vocab_size=37,
            max_position_embeddings=19,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
        ),
    ),
    "tanh": (
        BertForMaskedLM,
        dict(
            vocab_size=53,
            max_position_embeddings=32,
            hidden_size=20,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=28,
            hidden_act="gelu_new",
            layer_norm_eps=1e-3,
            type_vocab_size=3,
        ),
    ),
    "pre_training": (
        BertForPreTraining,
        dict(
            vocab_size=41,
            max_position_embeddings=23,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=36,
        ),
    ),
    "encoder": (
        BertModel,
        dict(
            vocab_size=31,
            max_position_embeddings=17,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=20,
        ),
    ),
}
LENGTH = 13


def make_model(seed: int, name: str):
    """A model whose every tensor is random: a bias of zeros would hide that it was misplaced."""
    torch.manual_seed(seed)
    cls, config = MODELS[name]
    model = cls(BertConfig(**config)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            x.copy_(centre + 0.2 * torch.randn(x.shape))
    return model


def expected(model) -> dict[str, np.ndarray]:
    config = model.config
    tokens = torch.randint(4, config.vocab_size, (3, LENGTH))
    types = torch.randint(0, config.type_vocab_size, (3, LENGTH))
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 9:] = mask[2, 5:] = 0
    found = {"tokens": tokens.numpy(), "types": types.numpy(), "mask": mask.numpy()}
    with torch.no_grad():
        of_types = model(tokens, attention_mask=mask, token_type_ids=types)
    if isinstance(model, BertModel):
        found["hidden"] = of_types.last_hidden_state.numpy()
        found["pooled"] = of_types.pooler_output.numpy()
        return found
    if isinstance(model, BertForPreTraining):
        found["next_sentence"] = of_types.seq_relationship_logits.numpy()
        found["logits"] = of_types.prediction_logits.numpy()
    else:
        found["logits"] = of_types.logits.numpy()
    targets = torch.randint(4, config.vocab_size, (3, LENGTH))
    found["targets"] = targets.numpy()
    made = model(tokens, attention_mask=mask)
    logits = made.logits if isinstance(model, BertForMaskedLM) else made.prediction_logits
    real = mask.bool()
    torch.nn.functional.cross_entropy(logits[real], targets[real]).backward()
    for name, x in model.named_parameters():
        if x.grad is None:
            continue
        if x.ndim == 1 or "position" in name:
            found[f"grad/{name}"] = x.grad.numpy()
        found[f"norm/{name}"] = x.grad.norm().numpy()
    return found


def main() -> None:
    for seed, name in enumerate(MODELS):
        model = make_model(seed, name)
        model.save_pretrained(GOLDEN / name)
        np.savez_compressed(GOLDEN / name / "expected.npz", **expected(model))


if __name__ == "__main__":
    main()
