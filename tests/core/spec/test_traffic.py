"""What devices must send one another in a step, by formulas."""

import dataclasses

import pytest

import palm
from palm.spec.mesh import Mesh
from palm.spec.traffic import Traffic, traffic

CONFIG = palm.preset("palm-8b", depth=2)
RECIPE = palm.recipe("paper", batch=16, ramp=(), length=64)
# Numbers of a matrix d × d; a block has four attention matrices and three of the feed-forward.
D, V = 4096, 256_000 * 4096
BLOCK = D * (4096 + 2 * 256 + 4096 + 3 * 4 * D) + D


def of(mesh: Mesh, config: palm.PaLMConfig = CONFIG, **changes) -> Traffic:
    return traffic(config, dataclasses.replace(RECIPE, **changes), mesh)


def test_one_device_receives_nothing():
    assert of(Mesh()) == Traffic(0, 0)


def test_along_data_weights_are_gathered_twice_and_their_gradients_shared_out():
    found = of(Mesh(data=4))
    assert found.gathered == pytest.approx(3 / 4 * 2 * 2 * (2 * BLOCK + V), rel=1e-3)
    assert found.reduced == pytest.approx(3 / 4 * 2 * (2 * BLOCK + V), rel=1e-3)
    own = of(Mesh(data=4), dataclasses.replace(CONFIG, tie_embeddings=False))
    assert own.gathered == found.gathered
    assert own.reduced - found.reduced == pytest.approx(3 / 4 * 2 * V)


def test_weights_that_are_not_cut_are_not_gathered_and_their_gradients_count_twice():
    whole, cut = of(Mesh(data=3), batch=15), of(Mesh(data=4))
    assert whole.gathered == 0
    assert whole.reduced == pytest.approx(2 * 2 / 3 * 2 * (2 * BLOCK + V), rel=1e-3)
    assert cut.gathered > 0


@pytest.mark.parametrize(("remat", "gathers"), [(True, 3), ("feedforward", 2), (False, 2)])
def test_along_model_activations_are_gathered_and_shared_out(remat, gathers):
    stream = 2 * D * 16 * 64 * 7 / 8
    found = of(Mesh(model=8), remat=remat)
    assert found.gathered == (gathers * 2 + 1) * stream
    assert found.reduced == (2 * 2 + 1) * stream


def test_along_pod_gradients_are_summed_whole():
    found = of(Mesh(pod=2))
    assert found.gathered == 0
    assert found.reduced == pytest.approx(2 * 2 * (2 * BLOCK + V) / 2, rel=1e-3)


def test_each_micro_batch_gathers_the_weights_again():
    assert of(Mesh(data=4), accumulate=2).gathered == 2 * of(Mesh(data=4)).gathered
    by_model, again = of(Mesh(model=4)), of(Mesh(model=4), accumulate=2)
    assert again == by_model  # the activations are as many
