"""The settings that are compared exist, are put back, and their table shows what was measured."""

import json
from importlib import import_module

import pytest
from ssm_kernels.bench import tuning


def constants():
    home = "ssm_kernels.ops.selective_scan"
    named = {(name, constant) for changes in tuning.SETTINGS.values() for name, constant, _ in changes}
    return {key: getattr(import_module(f"{home}.{key[0]}"), key[1]) for key in named}


@pytest.mark.parametrize("setting", tuning.SETTINGS)
def test_a_setting_changes_something_and_is_put_back(setting):
    before = constants()
    with pytest.raises(KeyError, match="inside"), tuning.changed(setting):
        assert (constants() == before) == (setting == "as it is")
        raise KeyError("inside")
    assert constants() == before


def test_table(tmp_path):
    row = {"setting": "as it is", "model": "muse", "shape": [1, 2, 3, 4], "fwd_ms": 0.1234, "bwd_ms": 2.0}
    (tmp_path / "tuning.json").write_text(json.dumps({"rows": [row, row | {"setting": "other", "model": "LM"}]}))
    lines = tuning.tuning_table(tmp_path / "tuning.json").splitlines()
    assert lines[1].split() == ["as", "it", "is", "0.123", "/", "2.000", "-"]
    assert lines[2].split() == ["other", "-", "0.123", "/", "2.000"]
