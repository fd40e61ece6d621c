import pytest

from airtune.cost import known_shapes

# numbers of parameters as the models' own pages and checkpoints give them
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    # encoders without their classifier of two classes
    "minilm-l6": 22_713_216 + 2 * 385,
    "bert-base": 109_482_240 + 2 * 769,
    "bert-large": 335_141_888 + 2 * 1025,
    "roberta-base": 124_645_632 + 2 * 769,
    "roberta-large": 355_359_744 + 2 * 1025,
    "vit-tiny": 5_717_416,
    "vit-small": 22_050_664,
    "vit-base": 86_567_656,
    "vit-large": 304_326_632,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert known_shapes()[name].parameters == PUBLISHED[name]


def test_every_preset_has_a_published_count():
    assert set(known_shapes()) == set(PUBLISHED)
