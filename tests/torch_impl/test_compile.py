"""The whole forward pass is one graph to torch.compile."""

import pytest
import torch
from cases import small

import palm

# Importing torch's compiler uses parts of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
TOKENS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture
def dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


@pytest.mark.parametrize(("positions", "attention"), [("alibi", "fused"), ("rotary", "textbook")])
def test_a_compiled_model_is_one_graph_with_the_same_logits(dynamo, positions, attention):
    model = palm.build(small(positions=positions, depth=1), backend="torch", attention=attention)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(TOKENS), model(TOKENS))
    explanation = dynamo.explain(model)(TOKENS)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
