import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from airtune.data.template import render, render_texts
from airtune.data.tokenise import tokenise_causal, tokenise_classes
from airtune.errors import ModelError
from airtune.model.batch import IGNORED


@pytest.fixture(scope="module")
def encoder():
    words = {word: place for place, word in enumerate(("[PAD]", "[CLS]", "[SEP]", "a", "b", "c"))}
    core = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[SEP]")


def test_only_completion_and_end_mark_are_scored(tokenizer):
    rendered = render(["What is 7 + 5?"], ["It is 12."], tokenizer=tokenizer, template=None)
    done = tokenise_causal(rendered, tokenizer=tokenizer, max_length=64)
    scored = done.targets[0] != IGNORED
    assert tokenizer.decode(done.tokens[0][scored]) == "It is 12.<|end|>"
    assert tokenizer.decode(done.tokens[0]) == rendered.texts[0]
    assert np.array_equal(done.targets[0][scored], done.tokens[0][scored])
    assert int(done.prompt[0]) == int(np.flatnonzero(scored)[0])


def test_plain_text_is_scored_whole_and_ends_once(plain_tokenizer):
    rendered = render_texts(["a fox", "a fox<|end|>"])
    one, two = tokenise_causal(rendered, tokenizer=plain_tokenizer, max_length=64).targets
    assert plain_tokenizer.decode(one) == "a fox<|end|>"
    assert np.array_equal(one, two)


def test_long_texts_are_cut_and_counted(plain_tokenizer):
    rendered = render_texts(["1 2 3 4 5 6 7 8", "1"])
    done = tokenise_causal(rendered, tokenizer=plain_tokenizer, max_length=4)
    assert [len(row) for row in done.tokens] == [4, 2]
    assert done.truncated.tolist() == [True, False]
    assert done.sequences(np.array([0, 1])).truncated == 1
    assert done.sequences(np.array([1])).truncated == 0


def test_prompt_that_fills_the_limit_leaves_nothing_to_score(plain_tokenizer):
    rendered = render(["1 2 3 4 5 6", "1"], ["7", "7"], tokenizer=plain_tokenizer, template=None)
    done = tokenise_causal(rendered, tokenizer=plain_tokenizer, max_length=4)
    assert done.scored.tolist() == [False, True]


def test_encoder_keeps_its_marks_when_it_cuts(encoder):
    done = tokenise_classes(["a b c", "a"], None, np.array([1, 0]), tokenizer=encoder, max_length=4)
    assert [row.tolist() for row in done.tokens] == [[1, 3, 4, 2], [1, 3, 2]]
    assert done.truncated.tolist() == [True, False]


def test_pair_is_joined_and_its_longer_text_is_cut(encoder):
    done = tokenise_classes(["a b c"], ["c"], np.array([0]), tokenizer=encoder, max_length=6)
    assert done.tokens[0].tolist() == [1, 3, 4, 2, 5, 2]


def test_end_mark_of_the_tokenizer_is_not_doubled(encoder):
    done = tokenise_causal(render_texts(["a b"]), tokenizer=encoder, max_length=9)
    assert done.tokens[0].tolist() == [1, 3, 4, 2]


def test_slow_tokenizer_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match="cannot map tokens to characters"):
        tokenise_causal(render_texts(["a"]), tokenizer=tokenizer, max_length=9)
