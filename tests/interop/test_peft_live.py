"""Against PEFT itself, which the extra `peers` installs."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("peft")

from make_peft_goldens import GOLDEN  # noqa: E402

from aigc_jax.interop import huggingface as hf  # noqa: E402
from aigc_jax.interop import peft  # noqa: E402
from aigc_jax.models.lora import LoRA, adapted  # noqa: E402
from aigc_jax.models.transformer import BERT, GPT  # noqa: E402
from aigc_jax.tasks.adapting import all_but  # noqa: E402
from aigc_jax.tasks.step import split_frozen  # noqa: E402
from aigc_jax.tasks.task import merge  # noqa: E402


@pytest.mark.parametrize(
    ("base", "lora"),
    [
        ("gpt2/plain", LoRA(("qkv", "attention_out", "mlp_"), rank=5, alpha=7.0)),
        ("gpt2/plain", LoRA(("blocks_1/qkv", "mlp_out"), rank=2, alpha=3.5, rslora=True)),
        ("bert/masked", LoRA(("qkv", "mlp_out", "mlm_dense"), rank=3, alpha=5.0)),
    ],
)
def test_peft_reads_what_is_written_and_computes_the_same(base, lora, tmp_path):
    found = hf.read(GOLDEN / base)
    kind, auto, auto_peft = {
        "causal_lm": (GPT, transformers.AutoModelForCausalLM, theirs.AutoPeftModelForCausalLM),
        "masked_lm": (BERT, transformers.AutoModelForMaskedLM, theirs.AutoPeftModel),
    }[found.task]
    model = adapted(kind(**{**found.fields, "dropout": 0.0}), lora)
    tokens = np.random.default_rng(0).integers(4, model.vocab_size, (3, 17))
    fresh = jax.jit(model.init)(jax.random.key(0), tokens)["params"]

    def move(path, x):
        key = jax.random.key(len(str(path)))
        return 0.3 * jax.random.normal(key, x.shape)

    drawn = split_frozen("model", jax.tree_util.tree_map_with_path(move, fresh), (all_but(()),))[0]
    params = merge(drawn, found.parameters)
    peft.write(tmp_path, model, params, lora, str(GOLDEN / base))
    before = auto.from_pretrained(GOLDEN / base)
    after = theirs.PeftModel.from_pretrained(before, tmp_path).eval()
    ours = jax.jit(model.apply)({"params": params}, tokens)
    with torch.no_grad():
        logits = after(torch.from_numpy(tokens)).logits.numpy()
        np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)
        assert after.peft_config["default"].r == lora.rank
        whole = after.merge_and_unload()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-5)
    # By the name that the file gives its base, too.
    named = auto_peft.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        again = named(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_array_equal(again, logits)
