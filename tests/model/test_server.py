"""The server's step against closed forms on two numbers."""

import pytest
import torch

from airtune.errors import ModelError
from airtune.model.server import ServerOptimizer, advance, evaluated
from airtune.model.state import GlobalState


def state(a, *, round=0, b=(1.0, 2.0)):
    adapters = {"0.q.A": torch.tensor([list(a)]), "0.q.B": torch.tensor([[b[0]], [b[1]]])}
    return GlobalState(round, adapters, {"head.weight": torch.tensor(a)})


def a_of(state):
    return state.adapters["0.q.A"].flatten().tolist()


def test_nothing_asked_for_is_what_the_aggregation_made():
    before, after = state((1.0, 2.0)), state((3.0, 4.0), round=1)
    found = advance(ServerOptimizer(), before, before, after, rule="average")
    assert found is after
    assert evaluated(found) is found


def test_the_mean_follows_its_recurrence_and_is_what_is_evaluated():
    now, mean = state((0.0, 0.0)), 0.0
    for t in range(12):
        after = state((float(t + 1), 0.0), round=t + 1)
        now = advance(
            ServerOptimizer(average=0.5),
            now,
            now,
            GlobalState(t + 1, after.adapters, after.head, average=now.average),
            rule="average",
        )
        kept = min(0.5, (1 + t) / (10 + t))
        mean = kept * mean + (1 - kept) * (t + 1)
        assert a_of(now) == [t + 1, 0]
        assert a_of(evaluated(now)) == pytest.approx([mean, 0])
        assert evaluated(now).head["head.weight"].tolist() == pytest.approx([mean, 0])


def test_momentum_adds_what_is_left_of_the_last_change():
    momentum, theta, velocity = ServerOptimizer(momentum=0.5), 0.0, 0.0
    now = state((0.0, 0.0))
    for t in range(3):
        after = state((theta + 1.0, 0.0), round=t + 1)
        after = GlobalState(t + 1, after.adapters, after.head, velocity=now.velocity)
        now = advance(momentum, now, now, after, rule="average")
        velocity = 0.5 * velocity + 1.0
        theta += velocity
        assert a_of(now) == pytest.approx([theta, 0.0])


def test_what_the_codec_of_a_broadcast_lost_does_not_reach_the_server():
    master, sent = state((1.0, 2.0)), state((1.1, 1.9))
    after = state((1.6, 1.9), round=1)
    found = advance(ServerOptimizer(), master, sent, after, rule="average")
    assert a_of(found) == pytest.approx([1.5, 2.0])


def test_where_axes_turn_the_mean_is_that_of_the_products():
    torch.manual_seed(0)

    def drawn(round):
        adapters = {"0.q.A": torch.randn(4, 6), "0.q.B": torch.randn(5, 4)}
        return GlobalState(round, adapters, {})

    before, after = drawn(3), drawn(4)
    found = evaluated(advance(ServerOptimizer(average=0.9), before, before, after, rule="lifted"))
    kept = 4 / 13
    products = [one.adapters["0.q.B"] @ one.adapters["0.q.A"] for one in (before, after, found)]
    u, s, v = torch.linalg.svd(kept * products[0] + (1 - kept) * products[1])
    best = u[:, :4] * s[:4] @ v[:4]
    assert torch.allclose(products[2], best, atol=1e-5)


def test_where_axes_turn_a_part_of_the_data_is_refused():
    with pytest.raises(ModelError, match="keeps them"):
        advance(
            ServerOptimizer(),
            state((1.0, 2.0)),
            state((1.0, 2.0)),
            state((3.0, 4.0)),
            rule="factored",
            stands_for=0.5,
        )
