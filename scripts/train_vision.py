"""Make the embedded vision model: a small ViT, trained on shapes that no shipped data set has.

    OMP_NUM_THREADS=1 python scripts/train_vision.py --output src/airtune/assets/vision

The same seed, torch version and thread count give the same file. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

from airtune.data.shapes import OTHER_FIGURES, SIZE, draw
from airtune.keys import derive_seed, generator
from airtune.model.frame import PREPROCESSOR, ImageFormat
from airtune.model.images import Images, collate_images, image_tokens


def make_config() -> ViTConfig:
    """Return the shape: 8 blocks of width 64, 4 heads, 192 channels, 36 patches of 4 x 4."""
    names = tuple(OTHER_FIGURES)
    return ViTConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=8,
        num_attention_heads=4,
        initializer_range=0.08,
        image_size=SIZE,
        patch_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )


def train(network: ViTForImageClassification, images: Images, options: argparse.Namespace) -> None:
    """Train with a warm-up and a cosine decay."""
    random, tokens = generator(options.seed, "batches"), image_tokens(network.config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.05)
    network.train()
    started = time.monotonic()
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 100)
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * warm * decay
        batch = collate_images(
            images, random.integers(0, len(images), options.batch), tokens=tokens
        )
        loss = network(pixel_values=batch.input_ids, labels=batch.labels).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or step == options.steps - 1:
            print(
                f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - started:6.1f} s",
                flush=True,
            )


@torch.no_grad()
def accuracy(network: ViTForImageClassification, images: Images) -> float:
    """Return the fraction classified right."""
    batch = collate_images(images, range(len(images)), tokens=image_tokens(network.config))
    logits = network.eval()(pixel_values=batch.input_ids).logits
    return float((logits.argmax(1) == batch.labels).double().mean())


def main() -> None:
    """Draw the images, train the model and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("src/airtune/assets/vision"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    options = parser.parse_args()
    random = generator(options.seed, "images")
    images = Images(*draw(options.images, random, OTHER_FIGURES))
    unseen = Images(*draw(1000, random, OTHER_FIGURES))
    torch.manual_seed(derive_seed(options.seed, "weights"))
    network = ViTForImageClassification(make_config())
    print(f"{sum(p.numel() for p in network.parameters())} parameters")
    train(network, images, options)
    print(f"accuracy on unseen images {accuracy(network, unseen):.3f}")
    network.save_pretrained(options.output)
    frame = ImageFormat(SIZE, patch=4)
    (options.output / PREPROCESSOR).write_text(frame.as_preprocessor(), encoding="utf-8")


if __name__ == "__main__":
    main()
