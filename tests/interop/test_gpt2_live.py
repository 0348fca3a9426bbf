"""Against transformers itself, which the extra `peers` installs."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from make_goldens import MODELS, make_model  # noqa: E402

from aigc_jax.interop import huggingface as hf  # noqa: E402
from aigc_jax.models.transformer import GPT  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
def test_logits_agree_and_what_is_written_is_loaded(name, tmp_path):
    theirs = make_model(11, MODELS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    found = hf.read(tmp_path / "theirs")
    model = GPT(**{**found.fields, "dropout": 0.0})
    tokens = np.random.default_rng(0).integers(4, model.vocab_size, (3, 17))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)).logits.numpy()
    ours = jax.jit(model.apply)({"params": found.parameters}, tokens)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)

    (tmp_path / "ours").mkdir()
    hf.write(tmp_path / "ours", "gpt2", model, found.parameters, {}, {"eos_token_id": 3})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert loaded.generation_config.eos_token_id == 3
    before, after = theirs.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
