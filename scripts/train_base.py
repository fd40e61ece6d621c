"""Make the embedded base model: a tokenizer and a small Llama, from text made by this project.

    OMP_NUM_THREADS=1 python scripts/train_base.py --output src/airtune/assets/model

The same seed, torch version and thread count give the same file. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from airtune.keys import derive_seed, generator
from base_text import ASSISTANT, END, USER, document

PAD = "<|pad|>"
CONTEXT = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{ASSISTANT}' if message['role'] == 'assistant' else '{USER}' }}}}"
    f"{{{{ message['content'] }}}}{END}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that never joins two digits, with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape: 4 blocks of width 128, 8 heads in 4 groups, 384 channels, tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


def train(network: LlamaForCausalLM, stream: torch.Tensor, options: argparse.Namespace) -> None:
    """Train on random windows of the token stream, with a warm-up and a cosine decay."""
    torch.manual_seed(derive_seed(options.seed, "train"))
    random = generator(options.seed, "windows")
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    network.train()
    started = time.monotonic()
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 40)
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * warm * decay
        starts = random.integers(0, len(stream) - options.window, options.batch)
        batch = torch.stack([stream[start : start + options.window] for start in starts.tolist()])
        loss = network(input_ids=batch, labels=batch).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if step % 25 == 0 or step == options.steps - 1:
            print(
                f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - started:6.1f} s",
                flush=True,
            )


def main() -> None:
    """Make the text, the tokenizer and the model, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("src/airtune/assets/model"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    options = parser.parse_args()
    random = generator(options.seed, "text")
    texts = [document(random) for _ in range(options.documents)]
    tokenizer = make_tokenizer(texts[:20_000], options.vocabulary)
    encoded = tokenizer([text + END for text in texts])["input_ids"]
    stream = torch.from_numpy(np.concatenate([np.asarray(row, np.int64) for row in encoded]))
    print(f"{len(texts)} documents, {len(stream)} tokens, vocabulary {len(tokenizer)}")
    torch.manual_seed(derive_seed(options.seed, "weights"))
    network = LlamaForCausalLM(make_config(tokenizer))
    print(f"{sum(p.numel() for p in network.parameters())} parameters")
    train(network, stream, options)
    network.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
