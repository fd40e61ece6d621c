import json

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from airtune.data import EMBEDDED_MODEL, DataSpec, load_federated
from airtune.model.batch import collate


def test_folder_is_small_and_plain():
    size = sum(path.stat().st_size for path in EMBEDDED_MODEL.iterdir())
    assert size < 5 * 1024**2
    config = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "auto_map" not in config


def test_base_has_finite_weights_within_the_size_meant():
    tensors = load_file(EMBEDDED_MODEL / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert 600_000 < sum(tensor.numel() for tensor in tensors.values()) < 1_200_000


def test_tokenizer_pads_ends_and_never_joins_digits(tokenizer):
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer("1234")["input_ids"]) == 4
    text = "Zoë\thas 17 % of it\n\n{}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_base_knows_its_own_text_and_not_yet_word_problems(tokenizer):
    network = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL)
    known = tokenizer(
        "Once there lived a kind child called Dan on a farm.<|end|>", return_tensors="pt"
    )["input_ids"]
    spec = DataSpec(limit=10, test_limit=20)
    data = load_federated(spec, tokenizer=tokenizer, devices=1, seed=0)
    batch = collate(data.test, range(20))
    with torch.no_grad():
        told = float(network(input_ids=known, labels=known).loss)
        asked = float(
            network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
            ).loss
        )
    assert told < 2.0
    assert asked > 3.0
