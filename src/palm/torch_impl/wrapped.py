"""What a user has made of a model, and which of palm's functions may still answer for it.

A model of palm's computes a function of its config and its weights. A user can wrap it, compute its weights
from others, hang hooks on its modules, or put other modules in their place. One rule for all of it:

* Wrappers that leave the function alone are taken off: torch.compile, DistributedDataParallel, DataParallel.
* Weights that are computed, by parametrizations, by pruning, or by sharing one module, count with the values
  that the forward pass uses. Gradients are those with respect to these values.
* What runs the model's own modules (`activations`, `value_and_grad`, recordings, `palm.compare`) runs hooks
  and other modules along with them. It refuses only what it cannot name: taps of modules that are not
  palm's, weights that are not there under their canonical names.
* What goes by config and weights alone (`to_numpy`, `save`, `convert`, `generate`) refuses a model that
  computes anything else.

Mirror: palm.jax_impl.wrapped; differs in that a tree of JAX's has neither wrappers nor hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from palm.errors import BackendError, WeightsError
from palm.spec.parameters import parameters
from palm.torch_impl.attention import Attention
from palm.torch_impl.block import Block
from palm.torch_impl.feedforward import FeedForward
from palm.torch_impl.linear import Linear
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import HeadNorm, Norm
from palm.torch_impl.pieces import is_placed
from palm.torch_impl.private import compiled_module, hooks_of, hooks_of_all_modules
from palm.tracing.turns import shared

_CALL_IT = "Remove it, or call the model itself."
_PEFT = "Call merge_and_unload() on the PEFT model, and pass what it returns."
# What no function is changed by, though it overrides a method.
_HARMLESS = ("__init__", "extra_repr")
# What the forward pass of a module reads of its own config.
_READ = {Norm: ("norm", "eps", "norm_eps_mode"), Attention: ("heads", "share_kv", "qk_norm")}


def find_model(given: object) -> PaLM | None:
    """The model of palm's that `given` is or wraps; None where there is none.

    Raises `BackendError` for a model inside a wrapper that may compute something else.
    """
    outer = given
    while isinstance(outer, nn.Module) and not isinstance(outer, PaLM):
        inner = _unwrapped(outer)
        if inner is None:
            break
        if _changes_by_hooks(outer):
            raise BackendError(f"model must have a wrapper without hooks; got {_name(outer)}. {_CALL_IT}")
        outer = inner
    if isinstance(outer, PaLM):
        return outer
    if isinstance(outer, nn.Module):
        held = [name for name, part in outer.named_modules() if isinstance(part, PaLM)]
        if held:
            fix = _PEFT if _from_peft(outer) else "Pass that, if what is around it leaves its logits alone."
            raise BackendError(
                "model must be palm's own, in nothing but torch.compile, DistributedDataParallel or "
                f"DataParallel; got {_name(outer)}, which holds one as .{held[0]}. {fix}"
            )
    return None


@shared()
def settled(model: PaLM) -> PaLM:
    """The model with each weight of the table as a parameter of its own.

    Itself, if it is so already; otherwise a plain model of the values its forward pass uses.
    Raises `WeightsError` for a weight that is not there, not a plain tensor, of another shape, without
    values, or that changes each time it is read; `BackendError` for a model whose weights are computed and
    which is not plain otherwise.
    """
    for name, kind in _kinds(model):
        _module(model, name, kind)
    state = {name: _weight(model, name, shape) for name, shape in _shapes(model).items()}
    _check_values(state)
    own = {
        name: dict(model.get_submodule(name).named_parameters(recurse=False)).get("weight") for name in state
    }
    if len(set(map(id, state.values()))) == len(state) and all(state[name] is own[name] for name in state):
        return model
    check_plain(model)
    plain = PaLM(model.config, attention=model.path, device="meta")
    values = {f"{name}.weight": weight.detach() for name, weight in state.items()}
    plain.load_state_dict(values, assign=True)
    return plain


def weight_dtypes(model: PaLM) -> set[torch.dtype]:
    """The dtypes of the weights of the table. Raises `BackendError` where a module is not palm's."""
    return {_value(_module(model, name, _kind_of_weight(name))).dtype for name in parameters(model.config)}


def check_taps(model: PaLM) -> None:
    """Raise `BackendError` unless the modules whose taps are taken, all but the innermost, are palm's own.

    The last taps of the model and of a block are taken before their hooks run, so these two may have none.
    Raises `WeightsError` for weights that no forward pass can use.
    """
    _check_hooks_of_all_modules()
    for name, kind in _kinds(model):
        if issubclass(kind, (PaLM, Block, Attention, FeedForward)):
            _check_methods(model, name, kind)
        if issubclass(kind, (PaLM, Block)):
            _check_hooks(model, name, kind)
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds = {name: _kind_of_weight(name) for name in parameters(model.config)}
    _check_values(
        {name: _value(modules[name]) for name, kind in kinds.items() if isinstance(modules.get(name), kind)}
    )


def check_plain(model: PaLM) -> None:
    """Raise `BackendError` unless config and weights alone decide what the model computes."""
    _check_hooks_of_all_modules()
    for name, kind in _kinds(model):
        _check_methods(model, name, kind)
        _check_hooks(model, name, kind)
        _check_settings(model, name, kind)
    if model.embedding.max_norm is not None:
        raise BackendError(
            "model must be a function of its weights alone; got model.embedding with "
            f"max_norm={model.embedding.max_norm}, which changes them. Set it to None."
        )


def _unwrapped(outer: nn.Module) -> nn.Module | None:
    if isinstance(outer, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return outer.module
    return compiled_module(outer)


def _kinds(model: PaLM) -> Iterator[tuple[str, type[nn.Module]]]:
    """The name and class of every module that palm built. Raises `BackendError` for more blocks or fewer."""
    count = sum(1 for _ in getattr(model, "blocks", ()))
    if count != model.config.depth:
        raise BackendError(
            f"model must have as many blocks as its config's depth, {model.config.depth}; got {count} in "
            "model.blocks. Build a model of another depth from dataclasses.replace(model.config, depth=…)."
        )
    yield "", PaLM
    for i in range(model.config.depth):
        yield f"blocks.{i}", Block
        yield f"blocks.{i}.attention", Attention
        yield f"blocks.{i}.feedforward", FeedForward
    for name in parameters(model.config):
        yield name, _kind_of_weight(name)


def _kind_of_weight(name: str) -> type[nn.Module]:
    kinds = {"embedding": nn.Embedding, "norm": Norm, "query_norm": HeadNorm, "key_norm": HeadNorm}
    return kinds.get(name.rpartition(".")[2], Linear)


def _check_hooks_of_all_modules() -> None:
    if any(True for _ in hooks_of_all_modules()):
        raise BackendError(
            "model must be a function of its weights alone; got a hook on all modules "
            f"(torch.nn.modules.module.register_module_…_hook). {_CALL_IT}"
        )


def _check_methods(model: PaLM, name: str, kind: type[nn.Module]) -> None:
    module = _module(model, name, kind)
    methods = ["__call__", *(n for n, value in vars(kind).items() if isinstance(value, FunctionType))]
    changed = [
        method
        for method in methods
        if method not in _HARMLESS
        and (method in vars(module) or getattr(type(module), method) is not getattr(kind, method))
    ]
    if changed:
        raise BackendError(
            f"model must be a function of its weights alone; got {_place(name)} of {_name(module)}, with "
            f"{changed[0]}() of its own. {_CALL_IT}"
        )


def _check_hooks(model: PaLM, name: str, kind: type[nn.Module]) -> None:
    if _changes_by_hooks(_module(model, name, kind)):
        raise BackendError(
            f"model must be a function of its weights alone; got a hook on {_place(name)}. "
            "Remove it (handle.remove(), torch.nn.utils.remove_weight_norm, …), or call the model itself."
        )


def _check_settings(model: PaLM, name: str, kind: type[nn.Module]) -> None:
    for field in _READ.get(kind, ()):
        own, whole = (getattr(part.config, field) for part in (_module(model, name, kind), model))
        if own != whole:
            raise BackendError(
                f"model must have modules of its own config; got {_place(name)} with {field}={own!r}, not "
                f"{whole!r}. Build the module from model.config, or call the model itself."
            )


def _place(name: str) -> str:
    return f"model.{name}" if name else "model"


def _module(model: PaLM, name: str, kind: type[nn.Module]) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise BackendError(
            f"model must have the modules that palm built; got none at model.{name}. Put it back."
        ) from None
    if isinstance(module, kind):
        return module
    if _from_peft(module):
        fix = _PEFT
    elif _unwrapped(module) is not None:
        fix = "Compile it in place, module.compile(), and leave it where it is."
    else:
        fix = "Put palm's module back, or call the model itself."
    raise BackendError(
        f"model must have the modules that palm built; got model.{name} of {_name(module)}, not of "
        f"{kind.__name__}. {fix}"
    )


def _changes_by_hooks(module: nn.Module) -> bool:
    # Pruning is a hook that computes the weight: `_weight` does the same.
    return any(not isinstance(hook, prune.BasePruningMethod) for hook in hooks_of(module))


def _weight(model: PaLM, name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the forward pass uses, as it is stored here."""
    module = _module(model, name, _kind_of_weight(name))
    weight = _value(module)
    computed = parametrize.is_parametrized(module)
    if computed and not torch.equal(weight, _value(module)):
        raise WeightsError(
            f"weights must be the same each time they are read; got model.{name}.weight, whose "
            "parametrization changes. Call model.eval(), or parametrize.remove_parametrizations(module, "
            '"weight").'
        )
    if type(weight) not in (Tensor, nn.Parameter) and not is_placed(weight):
        raise WeightsError(
            f"weights must be plain tensors; got model.{name}.weight of {_name(weight)}. "
            "Gather or dequantise it first (a DTensor: .full_tensor())."
        )
    if tuple(weight.shape) != shape:
        raise WeightsError(
            f"weights must have the shapes of their config; got model.{name}.weight of {list(weight.shape)}, "
            f"not {list(shape)}. Check that config and weights belong together."
        )
    return weight


def _check_values(weights: dict[str, Tensor]) -> None:
    empty = [name for name, weight in weights.items() if weight.is_meta]
    if empty:
        raise WeightsError(
            f"weights must have values; got model.{empty[0]}.weight on the meta device. Load them: "
            "model.to_empty(device=…), then model.load_state_dict(…)."
        )
    matrices = {weight.dtype for weight in weights.values() if weight.ndim > 1}
    if len(matrices) > 1:
        raise WeightsError(
            f"weights must have one dtype, except norm scales; got {', '.join(sorted(map(str, matrices)))}. "
            "Cast the whole model: model.to(torch.float32)."
        )


def _value(module: nn.Module) -> Tensor:
    with torch.no_grad():
        for hook in hooks_of(module):
            if isinstance(hook, prune.BasePruningMethod):
                masked: Tensor = hook.apply_mask(module)
                return masked
        weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _shapes(model: PaLM) -> dict[str, tuple[int, ...]]:
    """By name, the shape in which this wing stores each weight."""
    return {
        name: row.shape[::-1] if _kind_of_weight(name) is Linear else row.shape
        for name, row in parameters(model.config).items()
    }


def _from_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
