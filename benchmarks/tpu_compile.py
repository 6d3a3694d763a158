"""Do models with kernels for TPUs compile for them, and fit one? Asks the TPU's compiler; needs no TPU.

Compiles the forward pass and the whole training step of a model of a billion parameters, rotary by the splash
kernel and ALiBi by palm's own, for one chip of each kind of TPU. Each must compile, fit the chip's memory,
and contain the kernels; blockwise attention is the control, and must not contain them. Prints a table;
status 1 if anything is otherwise. The results go to benchmarks/results/tpu_compile.json.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.topologies import get_topology_desc
from jax.sharding import SingleDeviceSharding
from jax.stages import Lowered

import palm
from palm.jax_impl.model import PaLM
from palm.jax_impl.train import _State, _step
from palm.parity.recording.recording import environment
from palm.recipes import Rates
from palm.spec.sizes import describe

RESULTS = Path(__file__).parent / "results" / "tpu_compile.json"
# A v4 chip is used as one device of two cores, as JAX does on a machine that has one; a v5p is so anyway.
TOPOLOGIES = {"v4:2x2x1": {"chip_config_name": "megacore"}, "v5p:2x2x1": {}}
# The paper's 8B model in little: its vocabulary, its width of heads, blocks in one loop.
CONFIG = palm.preset("palm-8b", dim=1536, depth=18, heads=6)
CONFIGS = {
    "splash": CONFIG,
    "pallas": dataclasses.replace(CONFIG, positions="alibi"),
    "blockwise": CONFIG,
}
RECIPE = palm.recipe("paper", batch=4)
KERNELS = {"forward": ["fwd"], "step": ["fwd", "dq", "dkv"]}
# Each path's kernels are called so in the compiled program.
PREFIXES = {"splash": "splash_mqa", "pallas": "palm_mqa", "blockwise": "(splash|palm)_mqa"}
KERNEL = r"%%%s_%s[^\n]*tpu_custom_call"
# The control's step is left out: blockwise, it takes minutes to compile.
PROGRAMS = (
    ("forward", "splash"),
    ("step", "splash"),
    ("forward", "pallas"),
    ("step", "pallas"),
    ("forward", "blockwise"),
)
GIB = 2**30


class Described:
    """Arrays on one device of a TPU that is not there: shapes, dtypes and the place, no numbers."""

    def __init__(self, device: jax.Device) -> None:
        self._where = SingleDeviceSharding(device)

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._where)

    def model(self, path: str, dtype: Any) -> PaLM:
        # palm.build refuses a path whose device is not here.
        def make() -> PaLM:
            return PaLM(CONFIGS[path], attention=path, dtype=jnp.dtype(dtype), key=jax.random.key(0))

        return jax.tree.map(lambda leaf: self.array(leaf.shape, leaf.dtype), jax.eval_shape(make))

    def forward(self, path: str) -> Lowered:
        """A model in the recipe's precision, called."""
        tokens = self.array((RECIPE.batch, RECIPE.length), jnp.int32)
        return jax.jit(PaLM.__call__).lower(self.model(path, RECIPE.precision), tokens)

    def step(self, path: str) -> Lowered:
        """What `Trainer.step` runs, state donated as there; `eqx.filter_jit` itself wants arrays."""

        def step(windows: Any, rates: Rates, state: _State) -> Any:
            return _step.__wrapped__((windows, rates, RECIPE), state)

        model = self.model(path, jnp.float32)
        windows = self.array((RECIPE.batch, RECIPE.length + 1), jnp.int32)
        rates = Rates(*[self.array((), jnp.float32)] * len(Rates._fields))
        return jax.jit(step, donate_argnums=2).lower(windows, rates, _State(model, model, model))

    def memory(self) -> int:
        """Bytes of the chip that programs may use: the compiler tells when one needs more."""
        huge = self.array((1 << 48,), jnp.int8)
        try:
            jax.jit(lambda x: x + 1).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            return int(float(re.search(r"available HBM \(([\d.]+)G\)", str(error)).group(1)) * GIB)
        raise SystemExit("a program of 256 TiB was compiled: this compiler does not check memory")


def measure(lowered: Lowered, path: str, hbm: int) -> dict[str, Any]:
    """What the compiler makes of a program. One that does not fit the chip it refuses to compile."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    of, text = compiled.memory_analysis(), compiled.as_text()
    sizes = {
        "arguments": of.argument_size_in_bytes,
        "temporary": of.temp_size_in_bytes,
        # What is donated is an argument and an output at once.
        "outputs": of.output_size_in_bytes - of.alias_size_in_bytes,
        "program": of.generated_code_size_in_bytes,
    }
    return {
        "compile_seconds": seconds,
        "bytes": sizes,
        "total_bytes": sum(sizes.values()),
        "hbm_bytes": hbm,
        "kernels": [name for name in KERNELS["step"] if re.search(KERNEL % (PREFIXES[path], name), text)],
    }


def row(result: dict[str, Any]) -> str:
    arguments, temporary, outputs, _ = result["bytes"].values()
    columns = "".join(
        f"{size / GIB:6.2f}"
        for size in (arguments, temporary, outputs, result["total_bytes"], result["hbm_bytes"])
    )
    name = f"{result['topology']:<10}{result['what']:<8}{result['attention']:<10}"
    found = "yes: " + " ".join(result["kernels"]) if result["kernels"] else "no"
    return f"{name}{result['compile_seconds']:5.0f}{columns}  {found}"


def main() -> None:
    print(
        f"{describe(CONFIG).total:,} parameters, batches of {RECIPE.batch} x {RECIPE.length:,} tokens, "
        f"{RECIPE.precision};\nGiB of arguments, temporary values, outputs, all of it, and of the chip\n\n"
        f"{'topology':<10}{'what':<8}{'attention':<10}{'secs':>5}"
        f"{'args':>6}{'temp':>6}{'out':>6}{'all':>6}{'HBM':>6}  kernels"
    )
    results = []
    for topology, options in TOPOLOGIES.items():
        chip = Described(get_topology_desc(platform="tpu", topology_name=topology, **options).devices[0])
        hbm = chip.memory()
        for what, path in PROGRAMS:
            lowered = chip.forward(path) if what == "forward" else chip.step(path)
            result = {"topology": topology, "what": what, "attention": path, **measure(lowered, path, hbm)}
            print(row(result), flush=True)
            results.append(result)
    wrong = [
        result
        for result in results
        if result["total_bytes"] > result["hbm_bytes"]
        or result["kernels"] != (KERNELS[result["what"]] if result["attention"] != "blockwise" else [])
    ]
    for result in wrong:
        print(f"WRONG: does not fit, or has other kernels than it must:\n{row(result)}")
    machine = {**environment(), "libtpu": version("libtpu")}
    RESULTS.write_text(json.dumps({"environment": machine, "results": results}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
