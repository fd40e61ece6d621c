"""A hub that does not answer costs one question, not the client's many tries."""

import datasets
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import httpx

from airtune.data.hub import read_hub
from airtune.errors import DataError, ModelError
from airtune.model.base import load_base
from airtune.model.hub import is_out_of_reach


@pytest.fixture
def silent(monkeypatch):
    """Cut the hub's client off; what it was asked is noted."""
    asked = []

    def refuse(request):
        asked.append(request.method)
        raise httpx.ConnectError("no route", request=request)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    cut_off = httpx.Client(transport=httpx.MockTransport(refuse))
    monkeypatch.setattr("huggingface_hub.utils._http._GLOBAL_CLIENT", cut_off)
    return asked


def test_an_unknown_model_is_refused_at_once(silent):
    with pytest.raises(ModelError, match=r"cannot load model 'nobody/nothing'.*does not answer"):
        load_base("nobody/nothing", device="cpu")
    assert silent == ["HEAD"]


def test_an_unknown_data_set_is_refused_at_once(silent):
    with pytest.raises(DataError, match=r"'nobody/nothing' is neither a file nor .* the network"):
        read_hub("nobody/nothing", split="train")
    assert silent == ["HEAD"]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_what_is_offline_by_choice_is_not_asked(silent, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not is_out_of_reach()
    assert silent == []
