"""What is not a model of the named source is refused with one sentence that names the tensor or the file."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import pytest

import palm
from palm import PalmError, UpstreamError
from palm.upstream.read import from_upstream, read_upstream

TORCH = ("palm_pytorch.palm_lite", "palm_pytorch.palm_pytorch")
SOURCES = (*TORCH, "palm_jax.palm", "palm_jax.palm_lite")
TEMPLATE = re.compile(r".+ must .+; got .+\. [A-Z].+\.")


def refuse(given, source, *mentions):
    """Assert that the import is refused, in palm's own words."""
    with pytest.raises(UpstreamError) as caught:
        read_upstream(given, source)
    message = str(caught.value)
    assert TEMPLATE.fullmatch(message), message
    for mention in mentions:
        assert mention in message, message


@pytest.fixture
def tensors(originals, source):
    """The original's tensors, for a test to spoil."""
    return originals.build(source).tensors()


class TestTheWrongSource:
    @pytest.mark.parametrize("given", SOURCES)
    @pytest.mark.parametrize("named", SOURCES)
    def test_of_a_live_model(self, originals, given, named):
        if given != named:
            refuse(originals.build(given, heads=4, dim_head=6).model, named, named.partition(".")[0])

    @pytest.mark.parametrize("named", ["palm", "palm_jax", "", None, "palm_jax.PaLM"])
    def test_that_does_not_exist(self, originals, named):
        refuse({}, named, "source", repr(named), *SOURCES)

    def test_keys_and_values_shared_read_as_separate(self, originals):
        """No whole e, then no whole h."""
        state = originals.build("palm_jax.palm_lite", dim_head=7).tensors()
        refuse(state, "palm_jax.palm", "layers.0.wi", "h·e + 2·e + 2f")

    def test_keys_and_values_separate_read_as_shared(self, originals):
        state = originals.build("palm_jax.palm", heads=3).tensors()
        refuse(state, "palm_jax.palm_lite", "layers.0.wi", "h·e + 1·e + 2f", "whole h")


class TestTensors:
    def test_each_missing(self, tensors, source):
        optional = {"4.weight"}  # the tied output matrix
        for name in tensors.keys() - optional:
            refuse({n: t for n, t in tensors.items() if n != name}, source, name)

    def test_an_extra_one(self, tensors, source):
        refuse({**tensors, "rotary.extra": np.ones(3)}, source, "unknown=rotary.extra")
        refuse({**tensors, 7: np.ones(3)}, source, "unknown=7")

    def test_none(self, source):
        refuse({}, source, "missing=")

    def test_a_block_out_of_order(self, tensors, source):
        first, other = ("1.fn", "7.fn") if source in TORCH else ("layers.0", "layers.7")
        renamed = {name.replace(first, other): tensor for name, tensor in tensors.items()}
        refuse(renamed, source, first, other)

    def test_each_of_an_odd_shape(self, tensors, source):
        """One row or column too many. In the first block, which tells the sizes, another may be blamed."""
        for name, tensor in tensors.items():
            for axis in range(tensor.ndim):
                if (name, axis) == ("embedding", 0):
                    continue  # a larger vocabulary is no error
                odd = np.concatenate([tensor, np.take(tensor, [0], axis)], axis)
                tells_sizes = name.startswith(("1.fn", "layers.0", "0.weight", "embedding"))
                refuse({**tensors, name: odd}, source, *(() if tells_sizes else (name,)))

    def test_each_of_an_odd_rank(self, tensors, source):
        for name, tensor in tensors.items():
            refuse({**tensors, name: tensor[None]}, source, name, "axes", "shape=(1, ")
            refuse({**tensors, name: tensor.ravel()[0]}, source, name, "shape=()")
            refuse({**tensors, name: tensor[:0]}, source, name)

    @pytest.mark.parametrize("dtype", ["float16", "int64", "complex128", "O", "U"])
    def test_of_an_odd_dtype(self, tensors, source, dtype):
        name = "0.weight" if source in TORCH else "embedding"
        refuse({**tensors, name: tensors[name].astype(dtype)}, source, name, "dtype=")

    @pytest.mark.parametrize("value", [None, "a word", {"a": 1}, [[1.0], [1.0, 2.0]], object()])
    def test_that_are_no_arrays(self, tensors, source, value):
        name = "0.weight" if source in TORCH else "embedding"
        refuse({**tensors, name: value}, source, name)

    def test_layers_of_different_widths(self, originals, source):
        """Each layer is sound, but they are of two models."""
        state, wider = originals.build(source).tensors(), originals.build(source, dim_head=12).tensors()
        second = "2.fn." if source in TORCH else "layers.1."
        mixed = {name: (wider if name.startswith(second) else state)[name] for name in state}
        refuse(mixed, source, second, "shape=")

    def test_on_the_meta_device(self, originals):
        model = originals.build("palm_pytorch.palm_lite").model.to("meta")
        refuse(model, "palm_pytorch.palm_lite", "0.weight")

    def test_not_finite(self, tensors, source):
        """Found by the check that every palm model passes."""
        name = "1.fn.attn_out.weight" if source in TORCH else "layers.0.attn_wo"
        tensors[name][0, 0] = np.nan
        with pytest.raises(palm.WeightsError, match=r"blocks\.0\.attention\.out must be finite"):
            from_upstream(tensors, source, backend="torch")


class TestConstants:
    """palm_pytorch.palm_pytorch's buffers, and the eps of live models."""

    SOURCE = "palm_pytorch.palm_pytorch"

    @pytest.fixture
    def state(self, originals):
        return originals.build(self.SOURCE).tensors()

    @pytest.mark.parametrize("name", ["1.fn.norm.beta", "2.fn.norm.beta", "3.beta"])
    @pytest.mark.parametrize("value", [1e-30, -1.0, np.nan])
    def test_a_bias(self, state, name, value):
        state[name][3] = value
        refuse(state, self.SOURCE, name, "zero")

    @pytest.mark.parametrize(
        "frequencies",
        [
            [1.0, 0.5, 0.3, 0.2, 0.1],  # no geometric series
            [0.5, 0.25, 0.125, 0.0625, 0.03125],  # one that does not start at 1
            [1.0, 2.0, 4.0, 8.0, 16.0],  # θ below 1
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [1.0, 0.1, 0.01, 0.001, 0.0],
            [1.0, -0.1, 0.01, -0.001, 0.0001],
            [1.0, np.nan, 0.01, 0.001, 0.0001],
            [np.inf, 0.1, 0.01, 0.001, 0.0001],
        ],
    )
    def test_frequencies(self, state, frequencies):
        state["2.fn.rotary_emb.inv_freq"] = np.array(frequencies)
        refuse(state, self.SOURCE, "2.fn.rotary_emb.inv_freq", "geometric")

    def test_frequencies_of_two_thetas(self, state):
        state["2.fn.rotary_emb.inv_freq"] = 500.0 ** (-np.arange(5) / 5)
        refuse(state, self.SOURCE, "inv_freq", "[500.0, 10000.0]")

    def test_frequencies_rounded_and_widened(self, originals):
        """A cast to bfloat16 and back changes the function for good."""
        model = originals.build(self.SOURCE).model.bfloat16().float()
        refuse(model, self.SOURCE, "inv_freq", "cast")

    def test_norms_of_two_eps(self, originals):
        model = originals.build("palm_pytorch.palm_lite").model
        model[-2].eps = 1e-3
        refuse(model, "palm_pytorch.palm_lite", "eps", "[1e-08, 0.001]")


class TestFiles:
    @pytest.mark.parametrize("name", ["weights.bin", "weights", "weights.PT", "weights.pkl", "weights.npy"])
    def test_of_another_extension(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"")
        refuse(tmp_path / name, "palm_jax.palm", name, ".eqx")

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".eqx", ".npz"])
    def test_damaged(self, originals, tmp_path, suffix):
        """Absent, a folder, empty, noise, cut short anywhere, or with its first bytes changed."""
        source = "palm_jax.palm" if suffix == ".eqx" else "palm_pytorch.palm_lite"
        path = tmp_path / f"weights{suffix}"
        refuse(path, source, str(path))
        path.mkdir()
        refuse(path, source, str(path))
        path.rmdir()
        good = file_bytes(originals.build(source), suffix)
        for data in (b"\x93NUMPY", os.urandom(100), good[: len(good) // 2], good[:-1], b"?" + good[1:]):
            path.write_bytes(data)
            refuse(path, source, str(path))
        path.write_bytes(b"")
        refuse(path, source)

    def test_leaves_left_out(self, originals, tmp_path):
        whole = [np.asarray(leaf) for leaf in originals.build("palm_jax.palm").tensors().values()]
        path = tmp_path / "weights.eqx"
        for leaves in (whole[:-1], whole[:2], whole[:1], [*whole, whole[0]]):
            with path.open("wb") as file:
                for leaf in leaves:
                    np.save(file, leaf)
            refuse(path, "palm_jax.palm", "leaves", f"leaves={len(leaves)}")
            refuse(leaves, "palm_jax.palm", "leaves", f"leaves={len(leaves)}")
        refuse(whole[:-4] + whole[-3:] + whole[-4:-3], "palm_jax.palm", "layers.1.")
        refuse(whole, "palm_pytorch.palm_lite", "leaves", "palm_jax")

    def test_hyperparameters_before_the_leaves(self, originals, tmp_path):
        path = tmp_path / "weights.eqx"
        path.write_bytes(b'{"dim": 24}\n' + file_bytes(originals.build("palm_jax.palm"), ".eqx"))
        refuse(path, "palm_jax.palm", str(path), "tree_serialise_leaves")

    @pytest.mark.parametrize("suffix", [".pt", ".eqx", ".npz"])
    def test_nothing_is_unpickled(self, tmp_path, suffix):
        """A file that would create another when unpickled."""
        path, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
        bomb = np.array([Bomb(trace)], dtype=object)
        with path.open("wb") as file:
            if suffix == ".pt":
                import torch

                torch.save({"0.weight": Bomb(trace)}, file)
            elif suffix == ".eqx":
                np.save(file, bomb, allow_pickle=True)
            else:
                np.savez(file, embedding=bomb)
        refuse(path, "palm_jax.palm", str(path))
        assert not trace.exists()

    def test_a_whole_torch_model(self, originals, tmp_path):
        import torch

        path = tmp_path / "model.pt"
        torch.save(originals.build("palm_pytorch.palm_lite").model, path)
        refuse(path, "palm_pytorch.palm_lite", str(path), "state_dict")

    def test_a_state_inside_a_checkpoint(self, originals, tmp_path):
        import torch

        path = tmp_path / "checkpoint.pt"
        state = originals.build("palm_pytorch.palm_lite").model.state_dict()
        torch.save({"model": state, "step": 3}, path)
        refuse(path, "palm_pytorch.palm_lite", "unknown=model, step", "bare state")

    def test_a_torch_file_without_torch(self, tmp_path, monkeypatch):
        monkeypatch.setattr(palm.backends, "_missing", lambda backend: ["torch"])
        with pytest.raises(palm.MissingFrameworkError, match="pip install"):
            read_upstream(tmp_path / "weights.pt", "palm_pytorch.palm_lite")


@pytest.mark.parametrize("given", [None, 3, object(), np.ones(3), b"weights.pt", type])
def test_what_is_no_model_at_all(given, source):
    refuse(given, source, "model_or_state")


def test_a_model_of_palms_own(source, backend):
    model = palm.build(palm.preset("tiny", dim=8, num_tokens=5), backend=backend)
    refuse(model, source, "must")


def test_options_are_checked_as_everywhere(originals):
    tensors = originals.build("palm_jax.palm").tensors()
    for options in (
        {"backend": "numpy"},
        {"backend": "torch", "dtype": "half"},
        {"backend": "jax", "device": "?"},
    ):
        with pytest.raises(PalmError):
            from_upstream(tensors, "palm_jax.palm", **options)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def file_bytes(original, suffix):
    """A good file's content."""
    buffer = io.BytesIO()
    if suffix in (".pt", ".pth"):
        import torch

        torch.save(original.model.state_dict(), buffer)
    elif suffix == ".eqx":
        for leaf in original.tensors().values():
            np.save(buffer, leaf)
    elif suffix == ".npz":
        np.savez(buffer, **original.tensors())
    else:
        from safetensors.numpy import save

        buffer.write(save(original.tensors()))
    return buffer.getvalue()
