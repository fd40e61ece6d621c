import pytest

from airtune.data.template import render
from airtune.errors import DataError


def test_plain_template_puts_the_completion_on_its_own_line(plain_tokenizer):
    done = render(["1 + 1?"], ["2"], tokenizer=plain_tokenizer, template=None)
    assert (done.texts, done.starts, done.end) == (("1 + 1?\n2",), (7,), True)


def test_template_of_the_recipe_wins_over_the_chat_template(tokenizer):
    done = render(["a"], ["b"], tokenizer=tokenizer, template="Q {prompt} A {completion}.")
    assert done.texts == ("Q a A b.",)
    assert done.texts[0][done.starts[0] :] == "b."


def test_chat_template_is_scored_from_the_completion_to_the_end(tokenizer):
    done = render(["1 + 1?", "m"], ["2", "|>"], tokenizer=tokenizer, template=None)
    assert [text[start:] for text, start in zip(done.texts, done.starts, strict=True)] == [
        "2<|end|>",
        "|><|end|>",
    ]
    assert done.texts[0].startswith("<|user|>1 + 1?<|end|><|assistant|>")


def test_chat_template_that_strips_is_followed(plain_tokenizer, monkeypatch):
    strip = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}"
    monkeypatch.setattr(plain_tokenizer, "chat_template", strip)
    done = render(["a "], [" b "], tokenizer=plain_tokenizer, template=None)
    assert (done.texts[0], done.starts[0]) == ("[a][b]", 3)  # a caller sends "[a]"


def test_chat_template_that_changes_the_completion_is_refused(plain_tokenizer, monkeypatch):
    shout = "{% for m in messages %}{{ m['content'] | upper | replace('COMPLETION', 'completion') }}{% endfor %}"
    monkeypatch.setattr(plain_tokenizer, "chat_template", shout)
    with pytest.raises(DataError, match="changes the completion 'quiet'"):
        render(["a"], ["quiet"], tokenizer=plain_tokenizer, template=None)
