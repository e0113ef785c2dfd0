"""How the programs that train end."""

import pytest

from launch.training import training_errors


def test_what_is_wrong_in_the_middle_of_a_run_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, training_errors():
        raise ValueError("task 7: the chat template rewrites history, at piece 3")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: task 7: the chat template rewrites history, at piece 3\n"
