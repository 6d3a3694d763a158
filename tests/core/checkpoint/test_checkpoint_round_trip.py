"""What is saved comes back, bit for bit, whatever it looked like in memory."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from cases import ARCHITECTURES, DTYPES, architecture_id, assert_same_bits, draw_weights, small
from safetensors.numpy import load_file

from palm import CheckpointError
from palm.checkpoint import checkpoint
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.spec.parameters import parameters


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_every_dtype_come_back_bit_for_bit(tmp_path, dtype):
    config = small(tie_embeddings=False, share_kv=False)
    weights = draw_weights(config, dtype=dtype)
    weights["norm"][:3] = 0.0, -0.0, 1e-40
    path = save_arrays(config, weights, tmp_path / "checkpoint")
    found_config, found = load_arrays(path)
    assert found_config == config
    assert_same_bits(found, weights)


@pytest.mark.parametrize("choices", ARCHITECTURES[::7], ids=architecture_id)
def test_the_config_comes_back_with_the_weights(tmp_path, choices):
    config = dataclasses.replace(small(**choices), norm_eps=0.1 + 0.2, rope_theta=1e5 / 3)
    assert load_arrays(save_arrays(config, draw_weights(config), tmp_path / "checkpoint"))[0] == config


def test_a_checkpoint_is_a_config_a_manifest_and_safetensors_under_canonical_names(tmp_path):
    config = small()
    weights = draw_weights(config)
    path = save_arrays(config, weights, str(tmp_path / "checkpoint"))
    assert path == tmp_path / "checkpoint"
    assert files(path) == ["config.json", "manifest.json", "weights-00001-of-00001.safetensors"]
    assert (path / "config.json").read_text() == config.to_json()
    assert_same_bits(load_file(path / "weights-00001-of-00001.safetensors"), weights)


@pytest.mark.parametrize(("limit", "count"), [(1, 16), (10**4, 1), (700, 14)])
def test_large_weights_are_split_over_several_files(tmp_path, monkeypatch, limit, count):
    config = small()
    weights = draw_weights(config)
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", limit)
    path = save_arrays(config, weights, tmp_path / "checkpoint")
    parts = [name for name in files(path) if name.startswith("weights")]
    assert parts == [f"weights-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    held = [list(load_file(path / name)) for name in parts]
    assert sorted(name for names in held for name in names) == sorted(parameters(config))
    assert all(sum(weights[name].nbytes for name in names) <= limit or len(names) == 1 for names in held)
    assert_same_bits(load_arrays(path)[1], weights)


LAYOUTS = {
    "fortran order": np.asfortranarray,
    "every second element": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "a transposed view": lambda a: a.T.copy().T,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "a window of something larger": lambda a: np.pad(a, 1)[(slice(1, -1),) * a.ndim],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_of_any_layout_are_saved_by_their_values(tmp_path, dtype, layout):
    config = small()
    weights = draw_weights(config, dtype=dtype)
    laid_out = {name: LAYOUTS[layout](array) for name, array in weights.items()}
    assert_same_bits(load_arrays(save_arrays(config, laid_out, tmp_path / "checkpoint"))[1], weights)


def test_missing_parent_folders_are_made(tmp_path):
    config = small()
    path = save_arrays(config, draw_weights(config), tmp_path / "runs" / "3" / "checkpoint")
    assert load_arrays(path)[0] == config


def test_the_same_weights_make_the_same_bytes(tmp_path):
    config = small()
    paths = [save_arrays(config, draw_weights(config), tmp_path / name) for name in "ab"]
    contents = [{file.name: file.read_bytes() for file in path.iterdir()} for path in paths]
    assert contents[0] == contents[1]


def existing_file(path: Path) -> None:
    path.write_text("notes")


def existing_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes").write_text("notes")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [existing_file, existing_folder, dangling_link])
def test_what_exists_is_refused_and_left_alone(tmp_path, make):
    path = tmp_path / "checkpoint"
    make(path)
    with pytest.raises(CheckpointError) as raised:
        save_arrays(small(), draw_weights(small()), path)
    assert f"path must not exist yet; got path={path}." in str(raised.value)
    assert "overwrite=True" in str(raised.value)
    assert os.path.lexists(path)
    assert not (path / "config.json").exists()
    assert files(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("make", [existing_file, existing_folder, dangling_link])
def test_overwrite_refuses_what_is_no_checkpoint(tmp_path, make):
    path = tmp_path / "checkpoint"
    make(path)
    with pytest.raises(CheckpointError, match="path must be a checkpoint to be overwritten"):
        save_arrays(small(), draw_weights(small()), path, overwrite=True)
    assert os.path.lexists(path)
    assert files(tmp_path) == ["checkpoint"]


def test_overwrite_replaces_the_whole_of_what_was_there(tmp_path):
    path = save_arrays(small(), draw_weights(small()), tmp_path / "checkpoint")
    (path / "notes").write_text("of the old one")
    weights = {name: 2 * array for name, array in draw_weights(small()).items()}
    save_arrays(small(), weights, path, overwrite=True)
    assert_same_bits(load_arrays(path)[1], weights)
    assert files(tmp_path) == ["checkpoint"]
    assert "notes" not in files(path)


def test_overwrite_needs_nothing_to_overwrite(tmp_path):
    path = save_arrays(small(), draw_weights(small()), tmp_path / "checkpoint", overwrite=True)
    assert load_arrays(path)[0] == small()
