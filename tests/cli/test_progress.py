"""What is said of a run while it goes on, where no bar can be drawn."""

import pytest

from airtune.cli.progress import progress, watch_run


@pytest.mark.parametrize("is_quiet", [False, True])
def test_stages_are_said_once_each_without_a_terminal(capsys, is_quiet):
    with progress(is_quiet=is_quiet) as display:
        watch = watch_run(display, "1/2 jcpba", lambda folder: None)
        for stage in ("loading", "loading", "calibrating [1]", "running"):
            watch.on_stage(stage)
    said = capsys.readouterr().err.splitlines()
    assert said == (
        []
        if is_quiet
        else ["1/2 jcpba: loading", "1/2 jcpba: calibrating [1]", "1/2 jcpba: running"]
    )
