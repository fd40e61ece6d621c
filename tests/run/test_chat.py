"""A chat data set from init to export, and plain transformers with what was exported."""

import json
import re

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from airtune.cli.main import invoke

WORDS = [
    "<|pad|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "user",
    "assistant",
    "red",
    "cat",
    "dog",
    "[UNK]",
]
TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|> assistant '}}{% endif %}"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a base whose own end mark is not its template's, and a chat file."""
    core = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        unk_token="[UNK]",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            eos_token_id=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )
    network.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    turns = [{"from": "human", "value": "red"}, {"from": "gpt", "value": "cat dog"}]
    rows = "".join(json.dumps({"conversations": turns * (1 + n % 2)}) + "\n" for n in range(60))
    (tmp_path / "chat.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_chat_file_goes_from_init_to_export_and_its_answers_end(folder, monkeypatch, capsys):
    assert invoke(["init", "--model", "./base", "--data", "./chat.jsonl", "--fleet", "pocket"]) == 0
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["data"]["task"] == "causal-lm"
    sets = [
        "train.rounds=3",
        "train.local_steps=16",
        "train.learning_rate=0.02",
        "fleet.devices=2",
        "method.name=fedavg-lora",
        "evaluation.every=3",
        "threads=1",
    ]
    assert invoke(["run", "recipe.yaml", "--folder", "run", "--set", *sets]) == 0
    assert invoke(["export", "run", "--format", "merged"]) == 0
    tokenizer = AutoTokenizer.from_pretrained("run/export-merged")
    network = AutoModelForCausalLM.from_pretrained("run/export-merged")
    assert network.generation_config.eos_token_id == [3, 1]
    assert (tokenizer.eos_token_id, network.config.eos_token_id) == (3, 3)
    sent = tokenizer.apply_chat_template(
        [{"role": "user", "content": "red"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = network.generate(**sent, max_new_tokens=20)[0, sent["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == "cat dog <|im_end|>"
    assert invoke(["export", "run", "--format", "adapter"]) == 0
    card = (folder / "run/export-adapter/README.md").read_text()
    assert "Answer:\n\n```text\ncat dog\n```" in card
    monkeypatch.chdir("run/export-adapter")
    capsys.readouterr()
    exec(compile(re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1], "card", "exec"), {})
    assert capsys.readouterr().out.strip() == "cat dog <|im_end|>"
