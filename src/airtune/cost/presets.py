"""Published model configurations from 22 million to 7 billion parameters, for planning without weights.

Numbers are those of the models' public configs; encoders carry a head of two classes, vision transformers one of a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from airtune.cost.encoders import bert_like, vit_like
from airtune.cost.shapes import gpt2_like, llama_like
from airtune.plan import ModelShape

# name: family, blocks, width, heads, key-value groups, head width, FFN, vocabulary, tied
_DECODERS = {
    "smollm2-135m": ("llama", 30, 576, 9, 3, 64, 1536, 49152, True),
    "smollm2-360m": ("llama", 32, 960, 15, 5, 64, 2560, 49152, True),
    "qwen2.5-0.5b": ("qwen2", 24, 896, 14, 2, 64, 4864, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 28, 1536, 12, 2, 128, 8960, 151936, True),
    "qwen2.5-3b": ("qwen2", 36, 2048, 16, 2, 128, 11008, 151936, True),
    "qwen2.5-7b": ("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, False),
    "qwen3-0.6b": ("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, True),
    "qwen3-1.7b": ("qwen3", 28, 2048, 16, 8, 128, 6144, 151936, True),
    "llama-3.2-1b": ("llama", 16, 2048, 32, 8, 64, 8192, 128256, True),
    "llama-3.2-3b": ("llama", 28, 3072, 24, 8, 128, 8192, 128256, True),
    "tinyllama-1.1b": ("llama", 22, 2048, 32, 4, 64, 5632, 32000, False),
    "llama-2-7b": ("llama", 32, 4096, 32, 32, 128, 11008, 32000, False),
    "mistral-7b": ("mistral", 32, 4096, 32, 8, 128, 14336, 32000, False),
}

# name: blocks, width, heads (vocabulary 50257, 1024 positions, FFN four times the width)
_GPT2 = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20)}

# name: family, blocks, width, heads, FFN, vocabulary, positions, token types
_ENCODERS = {
    "minilm-l6": ("bert", 6, 384, 12, 1536, 30522, 512, 2),
    "bert-base": ("bert", 12, 768, 12, 3072, 30522, 512, 2),
    "bert-large": ("bert", 24, 1024, 16, 4096, 30522, 512, 2),
    "roberta-base": ("roberta", 12, 768, 12, 3072, 50265, 514, 1),
    "roberta-large": ("roberta", 24, 1024, 16, 4096, 50265, 514, 1),
}

# name: blocks, width, heads, FFN, image, patch (1000 classes)
_VISION = {
    "vit-tiny": (12, 192, 3, 768, 224, 16),
    "vit-small": (12, 384, 6, 1536, 224, 16),
    "vit-base": (12, 768, 12, 3072, 224, 16),
    "vit-large": (24, 1024, 16, 4096, 224, 16),
}


def known_shapes() -> Mapping[str, ModelShape]:
    """Return the published shapes by name.

    >>> known_shapes()["llama-2-7b"].parameters
    6738415616
    """
    shapes: dict[str, ModelShape] = {}
    for name, (family, blocks, width, heads, groups, head, ffn, vocab, tied) in _DECODERS.items():
        shapes[name] = llama_like(
            family,
            blocks=blocks,
            width=width,
            heads=heads,
            kv_groups=groups,
            head_dim=head,
            ffn=ffn,
            vocab=vocab,
            tied=tied,
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        )
    for name, (blocks, width, heads) in _GPT2.items():
        shapes[name] = gpt2_like(
            blocks=blocks, width=width, heads=heads, ffn=4 * width, vocab=50257, positions=1024
        )
    for name, (family, blocks, width, heads, ffn, vocab, positions, types) in _ENCODERS.items():
        shapes[name] = bert_like(
            family,
            blocks=blocks,
            width=width,
            heads=heads,
            ffn=ffn,
            vocab=vocab,
            positions=positions,
            types=types,
            labels=2,
        )
    for name, (blocks, width, heads, ffn, image, patch) in _VISION.items():
        shapes[name] = vit_like(
            blocks=blocks,
            width=width,
            heads=heads,
            head_dim=width // heads,
            ffn=ffn,
            image=image,
            patch=patch,
            channels=3,
            labels=1000,
            qkv_bias=True,
        )
    return MappingProxyType(shapes)
