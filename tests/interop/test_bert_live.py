"""BERT against transformers itself, which the extra `peers` installs."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from make_bert_goldens import MODELS, make_model  # noqa: E402

from aigc_jax.data import subwords  # noqa: E402
from aigc_jax.interop import huggingface as hf  # noqa: E402
from aigc_jax.models.transformer import BERT  # noqa: E402

LOADERS = {
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertModel": "AutoModel",
}


@pytest.mark.parametrize("name", MODELS)
def test_they_agree_and_what_is_written_is_loaded(name, tmp_path):
    theirs = make_model(11, name)
    theirs.save_pretrained(tmp_path / "theirs")
    found = hf.read(tmp_path / "theirs")
    model = BERT(**{**found.fields, "dropout": 0.0, "masked_head": name != "encoder"})
    tokens = np.random.default_rng(0).integers(4, model.vocab_size, (3, 16))
    encoder = theirs if name == "encoder" else theirs.bert
    with torch.no_grad():
        hidden = encoder(torch.from_numpy(tokens)).last_hidden_state.numpy()
    variables = {"params": found.parameters}
    ours = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, tokens)
    np.testing.assert_allclose(ours, hidden, rtol=0, atol=1e-5)

    (tmp_path / "ours").mkdir()
    hf.write(tmp_path / "ours", "bert", model, found.parameters, {})
    loader = getattr(transformers, LOADERS[type(theirs).__name__])
    loaded = loader.from_pretrained(tmp_path / "ours").eval()
    assert type(loaded) is type(theirs)
    before, after = theirs.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
    base = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = base(torch.from_numpy(tokens)).last_hidden_state.numpy()
    np.testing.assert_allclose(again, hidden, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocab_txt_gives_their_tokens(lowercase, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "cafe", "Caf", "##s", "é"]
    words += ["##é", "un", "##able", ",", "!", "中", "文"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    ours = subwords.read(tmp_path)
    vocabulary = {word: i for i, word in enumerate(words)}
    theirs = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
    text = "The Cafés, unable!中文 xyz"
    before, after = ours.frame()
    assert [*before, *ours.encode(text).tolist(), *after] == theirs(text)["input_ids"]
