"""Bars of a comparison are for a terminal."""

from palm.cli.progress import progress


def test_nothing_is_shown_where_there_is_no_terminal(capsys):
    with progress({"a": 1, "referee": 1}, {"a": "torch"}) as on_step:
        on_step("a", "build")
        on_step("referee", "referee")
    assert capsys.readouterr() == ("", "")
