"""Sealed files hold what their reader takes: JSON, without numbers that JSON does not have."""

import pytest

from palm.files.sealed import read_sealed, sealed


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_no_reader_takes_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed({"agreement": {"decode": number}})
    content = {"agreement": {"decode": 0.5}}
    (tmp_path / "x").write_text(sealed(content))
    assert read_sealed(tmp_path / "x") == (content, True)  # the control
