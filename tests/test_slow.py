"""The list of slow tests names tests that are there."""


def test_every_slow_test_is_one(unknown_slow_tests):
    assert not unknown_slow_tests
