"""What PEFT computes, as files: `tests/golden/peft`. Needs the extra `peers`.

  python tests/interop/make_peft_goldens.py

Made with peft 0.21.2, transformers 5.24.0 and torch 2.13.0 on a CPU: random adapters of tiny
models of `tests/golden/gpt2` and `tests/golden/bert`, as `save_pretrained` writes them, and
`expected.npz` with logits.
"""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

GOLDEN = Path(__file__).parent.parent / "golden"
GPT2 = dict(task_type="CAUSAL_LM", fan_in_fan_out=True)
ADAPTERS = {
    "plain": dict(
        r=3, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn", "mlp.c_proj"], **GPT2
    ),
    "untied": dict(
        r=4,
        lora_alpha=2.5,
        use_rslora=True,
        target_modules=["transformer.h.0.attn.c_attn", "transformer.h.2.attn.c_attn", "c_fc"],
        **GPT2,
    ),
    # Two A for one kernel of ours, a layer beside them, and one whose name ends another's.
    "masked": dict(r=2, lora_alpha=3, target_modules=["query", "value", "output.dense"]),
}
BASES = {"plain": "gpt2/plain", "untied": "gpt2/untied", "masked": "bert/masked"}


def make_adapters(name: str):
    """PEFT's model of a golden base, every adapter of it random."""
    torch.manual_seed(5)
    auto = AutoModelForMaskedLM if BASES[name].startswith("bert") else AutoModelForCausalLM
    model = get_peft_model(
        auto.from_pretrained(GOLDEN / BASES[name]), LoraConfig(**ADAPTERS[name])
    ).eval()
    with torch.no_grad():
        for parameter, x in model.named_parameters():
            if "lora_" in parameter:
                x.copy_(0.3 * torch.randn(x.shape))
    return model


def main() -> None:
    for name in ADAPTERS:
        model = make_adapters(name)
        model.peft_config["default"].base_model_name_or_path = f"tests/golden/{BASES[name]}"
        model.save_pretrained(GOLDEN / "peft" / name)
        (GOLDEN / "peft" / name / "README.md").unlink()
        size = model.get_base_model().config.vocab_size
        tokens = np.random.default_rng(0).integers(4, size, (3, 17))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)).logits.numpy()
        np.savez(GOLDEN / "peft" / name / "expected.npz", tokens=tokens, logits=logits)


if __name__ == "__main__":
    main()
