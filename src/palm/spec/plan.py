"""Will a training fit, and on which mesh? By the formulas of `palm.spec.footprint`, for any hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from palm.config import Backend, DType, PaLMConfig
from palm.errors import ConfigError
from palm.fields import check_choice, integer
from palm.memory import bytes_of, in_units
from palm.presets import preset
from palm.recipes import Recipe
from palm.recipes import recipe as find_recipe
from palm.spec.compiler import Compiled, compile_step
from palm.spec.footprint import Footprint, cache_bytes, footprint
from palm.spec.mesh import Mesh, check_batch, left_whole, mesh_of
from palm.spec.traffic import Traffic, traffic

# Of a device's memory, what a plan may take: what compilers keep for speed, frameworks and gaps between
# buffers take the rest. On meshes of TPUs a step took up to 1.22 times what was planned.
USABLE = 0.8
# More devices than these are not proposed.
_MOST_DEVICES = 1 << 16


@dataclass(frozen=True)
class Plan:
    """What a training step takes of each device of a mesh. Sizes are in bytes."""

    config: PaLMConfig
    """The model, resolved."""
    recipe: Recipe
    """The training, with the batch that was planned."""
    dtype: DType
    """The dtype of weights, gradients and moments."""
    mesh: Mesh
    """The mesh that was given, or the proposed one."""
    footprint: Footprint
    """What each device holds, by what it is for."""
    cache_bytes: int
    """Keys and values, in bfloat16, of the sequences that a device has of a batch, for `palm.generate`."""
    traffic: Traffic
    """What each device must receive in a step."""
    memory: int | None = None
    """What each device has; None if it was not given."""
    left_whole: tuple[str, ...] = ()
    """What the mesh would cut but cannot, because its size does not divide."""
    reasons: tuple[str, ...] = ()
    """Why this mesh, and none of a smaller `model`, is proposed."""
    remedies: tuple[str, ...] = ()
    """What else would fit, if the plan does not."""
    compiled: Compiled | None = None
    """What the compiler says, if it was asked; then what counts is that."""

    @property
    def bytes_per_device(self) -> int:
        """What a step takes of each device: by the compiler, or else by the formulas."""
        return self.footprint.total if self.compiled is None else self.compiled.total

    @property
    def fits(self) -> bool | None:
        """Whether that is at most four fifths of the device's memory; None if that was not given.

        The compiler knows what programs may use, and needs no margin.
        """
        if self.compiled is not None:
            return self.compiled.total <= self.compiled.memory
        return None if self.memory is None else self.bytes_per_device <= USABLE * self.memory

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain Python values, as JSON holds them."""
        return {
            "bytes_per_device": self.bytes_per_device,
            "fits": self.fits,
            "memory_per_device": self.memory,
            "devices": self.mesh.size,
            "mesh": dict(self.mesh.shape),
            "bytes": self.footprint.to_dict(),
            "cache_bytes": self.cache_bytes,
            "traffic": dataclasses.asdict(self.traffic),
            "compiled": None if self.compiled is None else self.compiled.to_dict(),
            "left_whole": list(self.left_whole),
            "reasons": list(self.reasons),
            "remedies": list(self.remedies),
            "dtype": self.dtype,
            "config": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
        }


def plan(
    model: PaLMConfig | str,
    *,
    devices: int | None = None,
    mesh: Mesh | Mapping[str, int] | str | None = None,
    memory: int | str | None = None,
    topology: str | None = None,
    timeout: float = 1800.0,
    recipe: Recipe | str = "paper",
    dtype: DType = "float32",
    architecture: Backend = "jax",
    **changes: Any,
) -> Plan:
    """What a training step takes of each device's memory: `palm.plan("palm-8b", devices=8, memory="80GiB")`.

    `model` is a config or the name of a preset; `architecture` chooses where it leaves a choice open.
    `memory` is what each device has, in bytes or as `80GiB`. `changes` are fields of the recipe: a batch, a
    length. A recipe whose batch grows is planned at its largest. `dtype` is that of weights and moments.
    Without a mesh one is proposed: of those that cut all that they should, share out the batch evenly and
    fit, the one with the smallest `model` and so the largest `data`. If none fits, it is the one that takes
    least, and `remedies` says what would. `palm.spec.footprint` and `palm.spec.traffic` have the formulas.
    With a `topology` such as `v4:8x16x16`, and a mesh of its size, the TPU's own compiler is asked: for at
    most `timeout` seconds, in a process of its own, on any machine that has JAX and libtpu.
    Raises `ConfigError` for a model, recipe, mesh, number of devices, memory or topology that there is not,
    and for a batch that a given mesh cannot share out; with a topology what `compile_step` raises.
    """
    config = (preset(model) if isinstance(model, str) else model).resolve(architecture)
    chosen = _chosen(recipe, changes)
    check_choice("dtype", dtype, ("float64", "float32"))
    has = None if memory is None else bytes_of(memory)
    if topology is not None:
        _check_alone(topology, mesh, memory, dtype)
    if mesh is None:
        return _proposed(config, chosen, dtype, 1 if devices is None else _checked(devices), has)
    given = mesh_of(mesh)
    if devices is not None and _checked(devices) != given.size:
        raise ConfigError(
            f"devices must be the mesh's {given.size}; got devices={devices}, mesh={given}. Leave one out."
        )
    for batch in _batches(chosen):
        check_batch(batch, chosen.accumulate, given)
    found = _plan_on(given, config, chosen, dtype, has)
    if topology is None:
        return _with_remedies(found)
    compiled = compile_step(config, chosen, given, topology, timeout=timeout)
    return dataclasses.replace(found, memory=compiled.memory, compiled=compiled)


def _check_alone(topology: str, mesh: Any, memory: Any, dtype: DType) -> None:
    """Raise `ConfigError` for what the compiler cannot be asked."""
    if mesh is None or memory is not None or dtype != "float32":
        raise ConfigError(
            "topology must be given with a mesh, and without memory and dtype, for chips have their own; got "
            f"topology={topology!r}, mesh={mesh}, memory={memory}, dtype={dtype!r}. Write --mesh data=4."
        )


def _checked(devices: int) -> int:
    return integer("devices", devices, least=1, below=_MOST_DEVICES + 1)


def _chosen(recipe: Recipe | str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the changes; a batch that is given is the only one."""
    base = find_recipe(recipe) if isinstance(recipe, str) else recipe
    fixed = {"ramp": (), **changes} if "batch" in changes else changes
    return Recipe.from_dict({**base.to_dict(), **fixed})


def _batches(recipe: Recipe) -> list[int]:
    return [recipe.batch, *(size for _, size in recipe.ramp)]


def _plan_on(mesh: Mesh, config: PaLMConfig, recipe: Recipe, dtype: DType, memory: int | None) -> Plan:
    return Plan(
        config=config,
        recipe=recipe,
        dtype=dtype,
        mesh=mesh,
        footprint=footprint(config, recipe, mesh, dtype),
        cache_bytes=cache_bytes(config, recipe, mesh),
        traffic=traffic(config, recipe, mesh),
        memory=memory,
        left_whole=left_whole(config, mesh),
    )


def _proposed(config: PaLMConfig, recipe: Recipe, dtype: DType, devices: int, memory: int | None) -> Plan:
    found, reasons = _search(config, recipe, dtype, devices, memory)
    return _with_remedies(dataclasses.replace(found, reasons=tuple(reasons)))


def _search(
    config: PaLMConfig, recipe: Recipe, dtype: DType, devices: int, memory: int | None
) -> tuple[Plan, list[str]]:
    """The mesh to propose, and what is against each one of a smaller `model`."""
    passed: list[str] = []
    second: list[Plan] = []
    for mesh in _meshes(devices):
        if any(size // recipe.accumulate % mesh.replicas for size in _batches(recipe)):
            micro = min(size // recipe.accumulate for size in _batches(recipe))
            passed.append(f"{mesh} cannot share out {micro} sequences evenly")
            continue
        candidate = _plan_on(mesh, config, recipe, dtype, memory)
        if candidate.fits is False:
            passed.append(f"{mesh} takes {in_units(candidate.bytes_per_device)}")
        elif candidate.left_whole:
            passed.append(f"{mesh} leaves whole what it should cut")
        else:
            return candidate, passed
        second.append(candidate)
    fitting = [candidate for candidate in second if candidate.fits is not False]
    if fitting:
        return fitting[0], [*passed, "no other mesh of these devices would do better"]
    least = min(second, key=lambda candidate: candidate.bytes_per_device)
    return least, [*passed, "no mesh of these devices fits, and this one takes least"]


def _meshes(devices: int) -> Iterator[Mesh]:
    """All of data × model, the smallest `model` first."""
    for model in range(1, devices + 1):
        if devices % model == 0:
            yield Mesh(data=devices // model, model=model)


def _with_remedies(plan: Plan) -> Plan:
    """The plan, with what would fit if it does not."""
    if plan.fits is not False:
        return plan
    found = [
        f"{what} takes {in_units(other.bytes_per_device)}, on the mesh {other.mesh}"
        for what, other in (_elsewhere(plan), _recomputing(plan), _accumulating(plan), _on_more(plan))
        if other is not None
    ]
    return dataclasses.replace(plan, remedies=tuple(found))


def _elsewhere(plan: Plan) -> tuple[str, Plan | None]:
    return "the same", _if_it_fits(plan, plan.recipe, plan.mesh.size)


def _recomputing(plan: Plan) -> tuple[str, Plan | None]:
    if plan.recipe.remat is True:
        return "", None
    recipe = dataclasses.replace(plan.recipe, remat=True)
    return "remat=True", _if_it_fits(plan, recipe, plan.mesh.size)


def _accumulating(plan: Plan) -> tuple[str, Plan | None]:
    """With the least accumulation that fits; if none does, of blocks that are computed again."""
    sizes = _batches(plan.recipe)
    for words, remat in (("", plan.recipe.remat), ("remat=True with ", True)):
        for count in range(plan.recipe.accumulate + 1, min(sizes) + 1):
            if all(size % count == 0 for size in sizes):
                recipe = dataclasses.replace(plan.recipe, remat=remat, accumulate=count)
                found = _if_it_fits(plan, recipe, plan.mesh.size)
                if found is not None:
                    return f"{words}accumulate={count}", found
    return "", None


def _on_more(plan: Plan) -> tuple[str, Plan | None]:
    """On the least of doubled numbers of devices that fits."""
    devices = 2 * plan.mesh.size
    while devices <= _MOST_DEVICES:
        found = _if_it_fits(plan, plan.recipe, devices)
        if found is not None:
            return f"devices={devices}", found
        devices *= 2
    return "", None


def _if_it_fits(plan: Plan, recipe: Recipe, devices: int) -> Plan | None:
    found, _ = _search(plan.config, recipe, plan.dtype, devices, plan.memory)
    return found if found.fits else None
