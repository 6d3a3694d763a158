"""Each wing's package is what the protocols say: checked by type checkers, never run."""

from palm import jax_impl, torch_impl
from palm.wings import Wing

torch_wing: Wing[torch_impl.PaLM] = torch_impl
jax_wing: Wing[jax_impl.PaLM] = jax_impl
