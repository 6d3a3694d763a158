"""A training step for TPU chips that are not here, through their compiler: the child of `palm.spec.compiler`.

    echo '{"config": …, "recipe": …, "mesh": …, "topology": "v4:2x2x1"}' | python -m palm.jax_impl.compiled

The compiler takes gigabytes and minutes, and may end the process: so it has one of its own.
"""

from __future__ import annotations

import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.stages import Compiled, Lowered

from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.jax_impl.attention import choose_path
from palm.jax_impl.collectives import collectives
from palm.jax_impl.model import PaLM
from palm.jax_impl.sharding import arranged, kind_of, spec_of
from palm.jax_impl.train import _State, _step
from palm.recipes import Rates, Recipe
from palm.spec.compiler import answer
from palm.spec.footprint import largest_batch
from palm.spec.mesh import BATCH, Mesh

# A v4 chip is one device of two cores, as JAX has it on a machine that has one; the others are so anyway.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
# What a step that is too large needs: all of it, or what it adds while it runs if that alone is too much.
_ALL = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_TEMPORARY = re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds")
_HBM = re.compile(r"available HBM \(([\d.]+)([KMGT])\)")


def main(request: dict[str, Any]) -> dict[str, Any]:
    """What the compiler makes of the step. Raises `PalmError` for what it does not compile."""
    config, recipe = PaLMConfig.from_dict(request["config"]), Recipe.from_dict(request["recipe"])
    mesh, devices = Mesh(**request["mesh"]), chips(request["topology"])
    if mesh.size != len(devices):
        raise ConfigError(
            f"mesh must be of the {len(devices)} chips of the topology {request['topology']}; got "
            f"mesh={mesh}, which is {mesh.size}. Change one of them."
        )
    memory = memory_of(devices[0])
    given = described(config, recipe, mesh, arranged(mesh, devices))
    lowered = lower(recipe, given)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        total, sizes, found = _needed(str(error), given), {}, {}
        if total is None:
            raise ConfigError(
                f"mesh must be one for which the TPU's compiler has a program; got mesh={mesh}, and it says: "
                f"{error}. Use another mesh."
            ) from None
    else:
        sizes, found = _sizes(compiled), collectives(compiled.as_text() or "")
        total = sum(sizes.values())
    seconds = time.perf_counter() - start
    return {"total": total, "memory": memory, "seconds": seconds, "sizes": sizes, "collectives": found}


def _needed(told: str, given: Any) -> int | None:
    """The bytes of a chip for a program that the compiler finds too large, of what it is `given`; None if the
    compiler says something else."""
    used, temporary = _ALL.search(told), _TEMPORARY.search(told)
    if used is not None:
        return _bytes(used[1], used[2])
    if temporary is None:
        return None
    return _bytes(temporary[1], temporary[2]) + sum(
        math.prod(of.sharding.shard_shape(of.shape)) * of.dtype.itemsize for of in jax.tree.leaves(given)
    )


def _sizes(compiled: Compiled) -> dict[str, int]:
    of: Any = compiled.memory_analysis()
    return {
        "arguments": of.argument_size_in_bytes,
        "temporary": of.temp_size_in_bytes,
        # What is donated is an argument and an output at once.
        "outputs": of.output_size_in_bytes - of.alias_size_in_bytes,
        "program": of.generated_code_size_in_bytes,
    }


def chips(topology: str) -> list[jax.Device]:
    """The devices of a topology such as `v4:2x2x1`. Raises `ConfigError` if there is none of that name."""
    kind = topology.partition(":")[0]
    try:
        return list(
            get_topology_desc(platform="tpu", topology_name=topology, **_OPTIONS.get(kind, {})).devices
        )
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ConfigError(
            f"topology must be one that the TPU's compiler knows, such as v4:2x2x1; got "
            f"topology={topology!r}, and it says: {error}. Write the chip, and how many along each dimension."
        ) from None


def memory_of(chip: jax.Device) -> int:
    """Bytes of a chip that programs may use: the compiler tells when one needs more."""
    huge = jax.ShapeDtypeStruct((1 << 48,), jnp.int8, sharding=SingleDeviceSharding(chip))
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        found = _HBM.search(str(error))
        if found is not None:
            return _bytes(found[1], found[2])
        raise
    raise AssertionError("a program of 256 TiB was compiled: this compiler does not check memory")


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** " KMGT".index(unit))


def described(
    config: PaLMConfig, recipe: Recipe, mesh: Mesh, devices: jax.sharding.Mesh
) -> tuple[Any, Rates, _State]:
    """The windows, rates and state of a step, of which no number is there."""

    def place(shape: tuple[int, ...], dtype: Any, *spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(devices, PartitionSpec(*spec)))

    path = choose_path("auto", config, "tpu")
    hollow = jax.eval_shape(lambda: PaLM(config, attention=path, key=jax.random.key(0)))

    def weight(where: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return place(leaf.shape, leaf.dtype, *spec_of(config, mesh, kind_of(where)))

    model = jax.tree_util.tree_map_with_path(weight, hollow)
    rows = (recipe.accumulate,) if recipe.accumulate > 1 else ()
    shape = (*rows, largest_batch(recipe) // recipe.accumulate, recipe.length + 1)
    windows = place(shape, np.int32, *(None for _ in rows), BATCH)
    rates = Rates._make([place((), np.float32)] * len(Rates._fields))
    return windows, rates, _State(model, model, model)


def lower(recipe: Recipe, given: tuple[Any, Rates, _State]) -> Lowered:
    """What `Trainer.step` runs, of arrays that are `described`."""
    unwrapped: Any = _step  # `eqx.filter_jit` itself wants arrays

    def step(windows: Any, rates: Rates, state: _State) -> Any:
        return unwrapped.__wrapped__((windows, rates, recipe), state)

    return jax.jit(step, donate_argnums=2).lower(*given)


if __name__ == "__main__":
    answer(main)
