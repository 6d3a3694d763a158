"""A few hundred inputs of `nox -s fuzz`, without a framework; and that it finds what is wrong on purpose."""

import pytest

pytest.importorskip("resource")  # not on Windows
from fuzz.run import Session, available
from fuzz.targets import TARGETS, WRONG

LIGHT = [name for name in available() if not TARGETS[name].needs and name not in ("info", "trace")]


@pytest.mark.whole
def test_mutated_files_are_refused_or_read(tmp_path):
    session = Session(seed=0, limit=30, keep=tmp_path)
    session.run(LIGHT, seconds=60, inputs=300)
    assert session.findings == []
    assert session.verdicts["refused"] > 150
    assert session.verdicts["read"] > 20


@pytest.mark.whole
def test_every_way_to_be_wrong_is_found_and_kept(tmp_path):
    session = Session(seed=0, limit=1.5, keep=tmp_path)
    session.run([*WRONG], seconds=60, inputs=len(WRONG))
    found = {finding["target"]: finding["verdict"] for finding in session.findings}
    assert found == {
        "bare": "raises JSONDecodeError",
        "other kind": "raises ConfigError",
        "hang": "takes more than 1.5 s",
        "crash": "dies with status -6",
        "other values": "loads other values",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}-0-0" for name in WRONG)
    assert (tmp_path / "bare-0-0" / "files" / "text.txt").is_file()
