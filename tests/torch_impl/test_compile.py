"""The whole forward pass is one graph to torch.compile."""

import pytest
import torch
from cases import small

import palm

# Importing torch's compiler uses parts of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("positions", "attention"),
    [("alibi", "blockwise"), ("rotary", "textbook"), ("rotary", "sdpa")],
)
def test_a_compiled_model_is_one_graph_for_every_length_with_the_same_logits(dynamo, positions, attention):
    from torch._dynamo.testing import CompileCounter

    model = palm.build(small(positions=positions, depth=1), backend="torch", attention=attention)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for length in (3, 5, 8):
        tokens = torch.arange(length)[None]
        # Products are the compiler's own, so the last bits are not the same.
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=0, atol=2e-6)
    assert counter.frame_count == 1
    explanation = dynamo.explain(model)(torch.tensor([[1, 2, 3, 4]]))
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
