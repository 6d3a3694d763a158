"""PaLM in PyTorch. `palm.build(cfg, backend="torch")` is the usual door; the parts are here."""

from palm.torch_impl import weights
from palm.torch_impl.attention import Attention, choose_path
from palm.torch_impl.block import Block
from palm.torch_impl.exported import Programs, make_programs
from palm.torch_impl.feedforward import FeedForward, swiglu
from palm.torch_impl.generate import Decoder, choose
from palm.torch_impl.installation import installation
from palm.torch_impl.linear import Linear, linear, product
from palm.torch_impl.loss import cross_entropy, next_token_loss, output_loss
from palm.torch_impl.mesh import device_mesh, is_first, mesh_of_model
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import Norm
from palm.torch_impl.optimizer import OPTIMIZERS, adafactor, adamw
from palm.torch_impl.paths import ATTENTION, blockwise_attention, textbook_attention
from palm.torch_impl.position import alibi_slopes, masked_scores, rotate, rotation_table, rotation_tables
from palm.torch_impl.probe import (
    activations,
    ahead,
    attention_of,
    device_name,
    logprobs,
    set_matmul,
    square_product,
    value_and_grad,
    widened,
)
from palm.torch_impl.processes import (
    agreed,
    greatest,
    join,
    leave,
    numbered,
    several,
    share,
    together,
    wait,
)
from palm.torch_impl.profile import profiled
from palm.torch_impl.programs import keep_programs
from palm.torch_impl.trace.program import trace_program
from palm.torch_impl.train import Trainer
from palm.torch_impl.weights import dtype_of, from_arrays, pieces, to_arrays
from palm.torch_impl.wrapped import check_plain, find_model, settled

__all__ = [
    "ATTENTION",
    "OPTIMIZERS",
    "Attention",
    "Block",
    "Decoder",
    "FeedForward",
    "Linear",
    "Norm",
    "PaLM",
    "Programs",
    "Trainer",
    "activations",
    "adafactor",
    "adamw",
    "agreed",
    "ahead",
    "alibi_slopes",
    "attention_of",
    "blockwise_attention",
    "check_plain",
    "choose",
    "choose_path",
    "cross_entropy",
    "device_mesh",
    "device_name",
    "dtype_of",
    "find_model",
    "from_arrays",
    "greatest",
    "installation",
    "is_first",
    "join",
    "keep_programs",
    "leave",
    "linear",
    "logprobs",
    "make_programs",
    "masked_scores",
    "mesh_of_model",
    "next_token_loss",
    "numbered",
    "output_loss",
    "pieces",
    "product",
    "profiled",
    "rotate",
    "rotation_table",
    "rotation_tables",
    "set_matmul",
    "settled",
    "several",
    "share",
    "square_product",
    "swiglu",
    "textbook_attention",
    "to_arrays",
    "together",
    "trace_program",
    "value_and_grad",
    "wait",
    "weights",
    "widened",
]
