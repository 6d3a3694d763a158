"""What is exported the safetensors library reads bit for bit, in one file or by an index."""

import json
import tracemalloc

import pytest
from cases import DTYPES, assert_same_bits, draw_weights, small
from damage import CONFIG, OLD, save_state
from safetensors import safe_open
from safetensors.numpy import load_file
from teams import save, together

import palm
from palm import CheckpointError
from palm.checkpoint import export as exports
from palm.checkpoint.checkpoint import save_arrays
from palm.cli.main import main


def by_index(folder):
    """As other tools read it."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    arrays = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "np") as opened:
            arrays[name] = opened.get_tensor(name)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert {*index["weight_map"].values()} == {file.name for file in folder.glob("*.safetensors")}
    return arrays


def in_pieces(folder):
    return together(2, lambda team: save(team, folder, OLD))[0]


SOURCES = {"whole": lambda folder: save_state(OLD, folder / "model"), "pieces": in_pieces}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_run_of_any_version_is_exported_without_its_moments(tmp_path, source):
    path = source(tmp_path)
    out = palm.export(path, tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_bits(load_file(out / "model.safetensors"), OLD[0])
    assert palm.PaLMConfig.from_json((out / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [1, 2000, 10**6])
def test_above_a_size_there_are_files_and_an_index(tmp_path, monkeypatch, dtype, limit):
    config = small()
    weights = draw_weights(config, dtype=dtype)
    path = save_arrays(config, weights, tmp_path / "model")
    monkeypatch.setattr(exports, "MOST_BYTES", limit)
    out = palm.export(path, tmp_path / "out")
    files = list(out.glob("*.safetensors"))
    if limit == 10**6:
        assert [file.name for file in files] == ["model.safetensors"]
        assert not (out / "model.safetensors.index.json").exists()
        assert_same_bits(load_file(files[0]), weights)
        return
    assert_same_bits(by_index(out), weights)
    assert len(files) == (len(weights) if limit == 1 else len(files)) > 1
    for file in files:
        held = load_file(file)
        assert sum(array.nbytes for array in held.values()) <= limit or len(held) == 1


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    config = small(dim=64, depth=40, num_tokens=2000)
    weights = draw_weights(config, dtype="float32")
    path = save_arrays(config, weights, tmp_path / "model")
    total, largest = (function(array.nbytes for array in weights.values()) for function in (sum, max))
    tracemalloc.start()
    try:
        palm.export(path, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 3 * largest + 10**6 < total
        kept = load_file(tmp_path / "out/model.safetensors")  # the twin: all of them would be seen
        assert tracemalloc.get_traced_memory()[1] > total
        assert_same_bits(kept, weights)
    finally:
        tracemalloc.stop()


def test_the_command_names_what_it_wrote(tmp_path, capsys):
    path, out = save_state(OLD, tmp_path / "model"), tmp_path / "out"
    assert main(["export", str(path), "--format", "safetensors", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "config.json"), str(out / "model.safetensors")]
    assert_same_bits(load_file(out / "model.safetensors"), OLD[0])
    assert main(["export", str(path), "--out", str(out)]) == 2
    assert "must not exist yet" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    path = save_state(OLD, tmp_path / "model")
    file = max(path.glob("weights-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file.name} must be as it was saved"):
        palm.export(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
