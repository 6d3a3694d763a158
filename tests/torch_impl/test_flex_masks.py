"""FlexAttention's block masks are kept for later calls, but not those that only a transform can read."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention as not_compiled

from palm.torch_impl.paths import flex, textbook_attention


@pytest.fixture
def attend(monkeypatch):
    """As on a GPU, but not compiled; with no masks kept yet."""
    monkeypatch.setattr(flex, "_compiled", lambda: not_compiled)
    flex._causal.cache_clear()
    yield flex.flex_attention
    flex._causal.cache_clear()


def inputs():
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 40, 2, 16, generator=draw), torch.randn(1, 40, 16, generator=draw)
    return q, k, k.flip(1), torch.tensor([0.5, 0.25])


def fake(attend):
    with FakeTensorMode() as mode:
        attend(*(mode.from_tensor(x) for x in inputs()))


def mapped(attend):
    def of_one(q):
        with contextlib.suppress(
            RuntimeError, NotImplementedError
        ):  # the kernel has no rule for all transforms
            attend(q, *rest)
        return q

    q, *rest = inputs()
    torch.vmap(of_one)(q[None])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("before", [fake, mapped])
def test_a_mask_made_for_a_transform_is_not_that_of_a_later_call(attend, before):
    before(attend)
    assert flex._causal.cache_info().currsize == 0
    with torch.no_grad():
        torch.testing.assert_close(attend(*inputs()), textbook_attention(*inputs()), rtol=1e-5, atol=1e-5)
    assert flex._causal.cache_info().currsize == 1  # the control: an ordinary one is kept
