import pytest


def fails(capsys, run, *message) -> list[str]:
    """The run ends with code 2, and the last line on stderr is an error that holds the message;
    returns the lines before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run()
    assert exit_info.value.code == 2
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    for part in message:
        assert str(part) in line
    return before


def fails_at_once(capsys, run, *message) -> None:
    """It fails, and prints nothing before the error."""
    assert fails(capsys, run, *message) == []
