"""The memory of a training step, by formulas."""

import math
from dataclasses import replace

import pytest
from cases import ROOT

import palm
from palm.spec.footprint import MOST_LOGITS, cache_bytes, footprint
from palm.spec.mesh import Mesh, cuts, piece
from palm.spec.parameters import parameters
from palm.spec.sizes import describe

GIB = 2**30
PAPER = palm.recipe("paper", batch=1024, ramp=())


def training(**changes):
    return palm.recipe("paper", **{"batch": 16, "ramp": (), **changes})


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=4), Mesh(data=2, model=8), Mesh(2, 3, 5)], ids=str)
@pytest.mark.parametrize("name", ["tiny", "palm-8b", "palm_jax.palm"])
def test_the_state_is_each_devices_pieces_of_all_weights(name, mesh):
    config = palm.preset(name, depth=2, tie_embeddings=False).resolve("torch")
    numbers = sum(
        math.prod(piece(cut, parameters(config)[name].shape, mesh))
        for name, cut in cuts(config, mesh).items()
    )
    for dtype, size in ("float32", 4), ("float64", 8):
        told = footprint(config, training(), mesh, dtype)
        assert told.weights == told.gradients == size * numbers
        assert told.moments == 2 * size * numbers
        assert told.copies == 2 * numbers
        assert told.state == 3 * size * numbers


def test_one_device_holds_all_parameters():
    config = palm.preset("palm-8b")
    assert footprint(config, training(), Mesh()).state == 12 * describe(config).total
    assert footprint(config, training(), Mesh(data=3)).state == 12 * describe(config).total  # 3 cuts nothing
    assert footprint(config, training(), Mesh(data=4)).state < 12 * describe(config).total / 3.99


def test_what_is_stored_by_hand():
    """The 540B model as in the paper: 8 sequences a device, embed cut in 16."""
    told = footprint(palm.preset("palm-540b"), PAPER, Mesh(data=128, model=16))
    assert told.stored == 118 * 8 * 2048 * (18432 // 16) * 2
    assert told.state == pytest.approx(3.04 * GIB, rel=0.01)  # and the TPU's compiler says so


def test_less_is_stored_when_more_is_computed_again():
    config = palm.preset("palm-8b")
    sizes = [
        footprint(config, training(remat=remat), Mesh()).stored for remat in (False, "feedforward", True)
    ]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]
    ff = 4 * 2 * config.ff_dim * config.depth * 16 * 2048
    assert sizes[0] - sizes[1] == ff


def test_micro_batches_share_activations_and_add_a_sum_of_gradients():
    config = palm.preset("palm-8b")
    one, four = (footprint(config, training(accumulate=count), Mesh()) for count in (1, 4))
    assert one.stored == 4 * four.stored
    assert four.gradients == 2 * one.gradients


def test_logits_are_never_all_there():
    config = palm.preset("palm-8b")
    assert footprint(config, training(), Mesh()).logits == 3 * 4 * MOST_LOGITS
    short = training(length=2, batch=2)
    assert footprint(config, short, Mesh()).logits == 3 * 4 * 4 * config.num_tokens
    both = footprint(config, short, Mesh(model=2))
    assert both.logits == 3 * 4 * 4 * config.num_tokens // 2
    odd = replace(config, num_tokens=config.num_tokens + 1)
    assert footprint(odd, short, Mesh(model=2)).logits == 3 * 4 * 4 * (config.num_tokens // 2 + 1)


def test_most_logits_are_those_of_the_wings():
    for wing in ("torch", "jax"):
        text = (ROOT / f"src/palm/{wing}_impl/loss.py").read_text(encoding="utf-8")
        assert "MOST_LOGITS = 1 << 25\n" in text
    assert MOST_LOGITS == 1 << 25


def test_a_recipe_counts_at_its_largest_batch():
    config, mesh = palm.preset("palm-8b"), Mesh(data=8)
    assert footprint(config, palm.recipe("paper"), mesh) == footprint(config, training(batch=2048), mesh)
    assert footprint(config, palm.recipe("paper"), mesh) != footprint(config, training(batch=512), mesh)


@pytest.mark.parametrize(("model", "shared"), [("palm-8b", 1), ("palm_jax.palm_lite", 2)])
def test_keys_and_values_are_of_one_head(model, shared):
    config = palm.preset(model)
    found = cache_bytes(config, training(), Mesh(data=4, model=2))
    assert found == 4 * 2048 * config.depth * 2 * config.dim_head * 2 // shared
