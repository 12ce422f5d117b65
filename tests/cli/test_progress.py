"""Progress of a build in the log of a job."""

from sleeptrain.cli.progress import Lines


def test_lines_have_rate_and_time_left(capsys):
    times = iter([0.0, 0.0, 10.0, 40.0, 50.0, 75.0])
    lines = Lines(clock=lambda: next(times))
    for done in (100, 200, 500, 600, 850):
        lines.show("MB read", done, 6_500)
    assert capsys.readouterr().err.splitlines() == [
        "MB read: 500 of 6,500, 10.0/s, 10 min left",
        "MB read: 850 of 6,500, 10.0/s, 9 min left",
    ]
