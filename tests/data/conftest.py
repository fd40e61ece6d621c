import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from airtune.data import EMBEDDED_MODEL

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded tokenizer; it has a chat template."""
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@pytest.fixture(scope="session")
def plain_tokenizer(tokenizer):
    """The same tokenizer without a chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )


@pytest.fixture
def write(tmp_path):
    """Write rows as jsonl, or text as it is, and return the path."""

    def _write(name, content):
        path = tmp_path / name
        if not isinstance(content, str):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return path

    return _write


@pytest.fixture
def questions():
    """Thirty question and answer rows."""
    return [
        {"question": f"What is {n} + 1?", "answer": f"It is {n + 1}\n#### {n + 1}"}
        for n in range(30)
    ]


@pytest.fixture
def shared_text():
    """Folder of the evaluation texts beside the checkout."""
    folder = SHARED / "text"
    if not folder.is_dir():
        pytest.skip(f"evaluation data is not at {folder}")
    return folder
