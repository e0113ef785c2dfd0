"""What benchmarks leave behind."""

import json
import math

import pytest

from benchmarks.report import Claim, Finding, check_json_out, finish


def test_a_value_without_bound_is_null_in_json(tmp_path, capsys):
    """JSON has no infinity, and a reader in another language would stop there."""
    claim = Claim("recovery", math.inf, "", "<=", 0.25, "never recovered")
    finding = Finding("nothing", "§1", math.nan, None, 0, [], "no rule", "not testable here")
    assert finish([claim], "python -m benchmarks.x", str(tmp_path / "out.json"), [finding]) == 1
    text = (tmp_path / "out.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["claims"][0]["value"], found["claims"][0]["holds"]) == (None, False)
    assert found["findings"][0]["value"] is None
    assert "recovery      inf" in capsys.readouterr().out


def test_a_folder_that_is_missing_is_told_before_the_work(tmp_path):
    with pytest.raises(SystemExit, match="its folder does not exist"):
        check_json_out(str(tmp_path / "missing" / "out.json"))
    check_json_out(None)
