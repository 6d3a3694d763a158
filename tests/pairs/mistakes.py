"""One mistake at a time in models of published libraries, and the lines that say where it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pairs.sides import Pair
from torch import nn


@dataclass(frozen=True)
class Mistake:
    """What is changed, on which side, and the end of the file's name and a part of the line that computes it.

    `settings`: other ones of the PyTorch model; `port`: of the JAX program. `edit`: what is done to the
    PyTorch model. `patch`: module, name and value of what stands in the place of a library's function.
    """

    name: str
    at: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    port: Mapping[str, Any] = field(default_factory=dict)
    edit: Callable[[Any], None] | None = None
    patch: tuple[str, str, Callable[..., Any]] | None = None

    @contextmanager
    def sides(self, pair: Pair) -> Iterator[tuple[Any, Any]]:
        """Both programs, one of them with the mistake."""
        port = pair.port(pair.torch().model, **self.port)
        other = pair.torch(**self.settings)
        if self.edit is not None:
            self.edit(other.model)
        if self.patch is None:
            yield other, port
            return
        module, name, value = self.patch
        held = importlib.import_module(module)
        before = getattr(held, name)
        setattr(held, name, value)
        try:
            yield other, port
        finally:
            setattr(held, name, before)


HERE = "pairs/mistakes.py"


def interleaved(x: torch.Tensor) -> torch.Tensor:
    """Rotary pairs of neighbours where there should be halves."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((-odd, even), -1).flatten(-2)


def other_way(x: torch.Tensor) -> torch.Tensor:
    """Rotary the other way round."""
    a, b = x.chunk(2, -1)
    return torch.cat((b, -a), -1)  # the mistake: other way


def keys_for_values(model: Any) -> None:
    """The values are made with the keys' weights."""
    attention = model.model.layers[0].self_attn
    attention.v_proj = attention.k_proj


def steeper(mask: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
    """ALiBi with slopes that are twice as steep."""
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    bias = 2 * slopes[:, None] * torch.arange(mask.shape[1])  # steeper, the mistake
    return bias[:, None].to(dtype)


def halved(layer: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    """Half of what a layer gives goes to the residual stream."""

    def half(_module: nn.Module, _given: Any, found: Any) -> Any:
        return found * 0.5 if isinstance(found, torch.Tensor) else (found[0] * 0.5, *found[1:])

    return lambda model: layer(model).register_forward_hook(half)


def put(where: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:
    """Another value of an attribute."""
    return lambda model: setattr(where(model), name, value)


def zeroed(where: Callable[[Any], torch.Tensor]) -> Callable[[Any], None]:
    """A parameter that was not copied."""
    return lambda model: where(model).data.zero_()


def shifted(embedding: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    """Positions that begin at one."""

    def later(_module: nn.Module, given: Any) -> Any:
        return (given[0] + 1,)

    return lambda model: embedding(model).register_forward_pre_hook(later)


def seen_one_too_far(*args: Any, **kwargs: Any) -> torch.Tensor:
    """A mask in which each position also sees the next one."""
    n = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)).shape[1]
    seen = torch.ones(n, n).tril(1)
    return torch.where(seen > 0, 0.0, -1e9)[None, None]


_LLAMA = "transformers.models.llama.modeling_llama"
_NEOX = "transformers.models.gpt_neox.modeling_gpt_neox"
_GEMMA = "transformers.models.gemma.modeling_gemma"
_GPT2 = "transformers.models.gpt2.modeling_gpt2"
_FALCON = "transformers.models.falcon.modeling_falcon"
_SDPA = ("sdpa_attention.py", "scaled_dot_product_attention")
_MASK = (_SDPA, (HERE, "torch.where(seen"), (HERE, "tril(1)"))
_HALF = ((HERE, "found * 0.5"),)
_PENZAI_NORM = "penzai/nn/standardization.py"


def _theta(value: float) -> Mapping[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": value}}


MISTAKES: dict[str, tuple[Mistake, ...]] = {
    "LLaMA, penzai": (
        Mistake("eps", (("modeling_llama.py", "variance_epsilon"),), {"rms_norm_eps": 1e-5}),
        Mistake("theta", (("modeling_llama.py", "self.inv_freq"),), _theta(20000.0)),
        Mistake("gelu", (("activations.py", "self.act(input)"),), {"hidden_act": "gelu"}),
        Mistake("scale", (_SDPA,), edit=put(lambda m: m.model.layers[1].self_attn, "scaling", 0.4)),
        Mistake("mask", _MASK, patch=(_LLAMA, "create_causal_mask", seen_one_too_far)),
        Mistake("residual", _HALF, edit=halved(lambda m: m.model.layers[0].mlp)),
        Mistake("no final norm", ((_PENZAI_NORM, ""),), edit=put(lambda m: m.model, "norm", nn.Identity())),
        Mistake(
            "rotary of neighbours",
            ((HERE, "torch.stack((-odd"), (HERE, "::2]")),
            patch=(_LLAMA, "rotate_half", interleaved),
        ),
        # The keys have a counterpart, wherever they are made; the weight of the values has none.
        Mistake("values of keys", (("penzai/nn/linear_and_affine.py", "tensordot"),), edit=keys_for_values),
        Mistake("eps of the port", ((_PENZAI_NORM, "epsilon"),), port={"rms_norm_eps": 1e-4}),
    ),
    "GPT-NeoX, penzai": (
        Mistake("eps", (("modeling_gpt_neox.py", "layernorm("),), {"layer_norm_eps": 1e-4}),
        Mistake(
            "theta",
            (("modeling_gpt_neox.py", "self.inv_freq"),),
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}},
        ),
        Mistake(
            "rotated part",
            (("modeling_gpt_neox.py", "rotary"), ("modeling_gpt_neox.py", "self.inv_freq")),
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                }
            },
        ),
        Mistake("gelu tanh", (("activations.py", ""),), {"hidden_act": "gelu_new"}),
        Mistake(
            "sequential",
            (
                ("modeling_gpt_neox.py", "attn_output + hidden_states"),
                ("modeling_gpt_neox.py", "layernorm(attn_output)"),
            ),
            {"use_parallel_residual": False},
        ),
        Mistake("scale", (_SDPA,), edit=put(lambda m: m.gpt_neox.layers[0].attention, "scaling", 0.3)),
        Mistake("mask", _MASK, patch=(_NEOX, "create_causal_mask", seen_one_too_far)),
        Mistake("other way", ((HERE, "other way"),), patch=(_NEOX, "rotate_half", other_way)),
        Mistake(
            "no final norm",
            ((_PENZAI_NORM, ""),),
            edit=put(lambda m: m.gpt_neox, "final_layer_norm", nn.Identity()),
        ),
        Mistake(
            "no bias",
            (("modeling_gpt_neox.py", "dense_4h_to_h(hidden"),),
            edit=zeroed(lambda m: m.gpt_neox.layers[1].mlp.dense_4h_to_h.bias),
        ),
    ),
    "GPT-2, KerasHub": (
        Mistake("eps", (("modeling_gpt2.py", "self.ln_1("),), {"layer_norm_epsilon": 1e-4}),
        Mistake("gelu erf", (("activations.py", "self.act(input)"),), {"activation_function": "gelu"}),
        Mistake("no scale", (_SDPA,), {"scale_attn_weights": False}),
        Mistake("scale by layer", (_SDPA,), {"scale_attn_by_inverse_layer_idx": True}),
        Mistake("positions", ((HERE, "given[0] + 1"),), edit=shifted(lambda m: m.wpe)),
        Mistake("mask", _MASK, patch=(_GPT2, "create_causal_mask", seen_one_too_far)),
        Mistake("residual", _HALF, edit=halved(lambda m: m.h[1].attn)),
        Mistake(
            "no final norm",
            (("keras/src/layers/normalization/layer_normalization.py", ""),),
            edit=put(lambda m: m, "ln_f", nn.Identity()),
        ),
        Mistake(
            "no bias",
            (("pytorch_utils.py", "addmm"), ("keras/src/layers/core/dense.py", "self.bias")),
            edit=zeroed(lambda m: m.h[0].mlp.c_fc.bias),
        ),
    ),
    "Gemma, KerasHub": (
        Mistake("eps", (("modeling_gemma.py", "self.eps"),), {"rms_norm_eps": 1e-5}),
        Mistake("theta", (("modeling_gemma.py", "self.inv_freq"),), _theta(5000.0)),
        Mistake("silu", (("activations.py", "silu"),), {"hidden_act": "silu"}),
        Mistake("scale", (_SDPA,), edit=put(lambda m: m.layers[0].self_attn, "scaling", 0.4)),
        Mistake(
            "scale of the embedding",
            (("modeling_gemma.py", "self.embed_scale"),),
            edit=lambda m: m.embed_tokens.embed_scale.fill_(5.0),
        ),
        Mistake("mask", _MASK, patch=(_GEMMA, "create_causal_mask", seen_one_too_far)),
        Mistake(
            "rotary of neighbours",
            ((HERE, "torch.stack((-odd"), (HERE, "::2]")),
            patch=(_GEMMA, "rotate_half", interleaved),
        ),
        Mistake("residual", _HALF, edit=halved(lambda m: m.layers[1].mlp)),
        Mistake(
            "no final norm", (("rms_normalization.py", ""),), edit=put(lambda m: m, "norm", nn.Identity())
        ),
        Mistake("eps of the port", (("rms_normalization.py", "epsilon"),), port={"layer_norm_epsilon": 1e-4}),
    ),
    "Falcon, KerasHub": (
        Mistake("eps", (("modeling_falcon.py", "layernorm("),), {"layer_norm_epsilon": 1e-4}),
        Mistake("gelu tanh", (("activations.py", ""),), {"activation": "gelu_new"}),
        Mistake("steeper biases", ((HERE, "steeper, the"),), patch=(_FALCON, "build_alibi_tensor", steeper)),
        Mistake("no biases of positions", (("modeling_falcon.py", "self.inv_freq"),), {"alibi": False}),
        Mistake(
            "mask",
            (*_MASK, ("modeling_falcon.py", "attention_mask")),
            patch=(_FALCON, "create_causal_mask", seen_one_too_far),
        ),
        Mistake("residual", _HALF, edit=halved(lambda m: m.h[1].mlp)),
        Mistake(
            "no final norm", (("layer_normalization.py", ""),), edit=put(lambda m: m, "ln_f", nn.Identity())
        ),
        Mistake(
            "no bias",
            (("modeling_falcon.py", "+ self.bias"), ("keras/src/layers/core/dense.py", "self.bias")),
            edit=zeroed(lambda m: m.h[0].mlp.dense_4h_to_h.bias),
        ),
        Mistake(
            "eps of the port",
            (("layer_normalization.py", "epsilon"), ("layer_normalization.py", "")),
            port={"layer_norm_epsilon": 1e-4},
        ),
    ),
    "ViT, equimo": (
        Mistake("eps", (("modeling_vit.py", "layernorm"),), {"layer_norm_eps": 1e-4}),
        Mistake("gelu tanh", (("activations.py", ""),), {"hidden_act": "gelu_new"}),
        Mistake("scale", (_SDPA,), edit=put(lambda m: m.vit.layers[0].attention, "scaling", 0.3)),
        Mistake(
            "no class token",
            (("modeling_vit.py", "cls_token"),),
            edit=zeroed(lambda m: m.vit.embeddings.cls_token),
        ),
        Mistake("residual", _HALF, edit=halved(lambda m: m.vit.layers[1].mlp)),
        Mistake(
            "no final norm",
            (("equimo/models/vit.py", "self.norm"),),
            edit=put(lambda m: m.vit, "layernorm", nn.Identity()),
        ),
        Mistake(
            "no bias",
            (("modeling_vit.py", "k_proj"), ("modeling_vit.py", "q_proj")),
            edit=zeroed(lambda m: m.vit.layers[0].attention.q_proj.bias),
        ),
        Mistake("gelu tanh of the port", (("equimo/layers/", ""),), port={"act_layer": "gelu"}),
        Mistake("eps of the port", (("equimo/layers/attention.py", "norm"),), port={"eps": 1e-4}),
    ),
}
