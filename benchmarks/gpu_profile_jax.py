"""Which operations the JAX wing's training step spends its time in, and what XLA says the model costs."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_side
from costs import training_flops
from gpu_groups import TINY, Scale, profiled
from gpu_part import parser, path_of
from jax.profiler import ProfileData
from job import config_of, windows

import palm
from palm.jax_impl import next_token_loss
from palm.parity.recording.recording import environment

STEPS = 3
ROWS = 40


def times(trace: Path) -> tuple[Counter[str], Counter[str]]:
    """Seconds, and calls, of each operation in a trace: a GPU's kernels, or the CPU's compiled operations."""
    [file] = trace.rglob("*.xplane.pb")
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    planes = list(ProfileData.from_file(str(file)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in on_device or planes:
        for line in plane.lines:
            for event in line.events:
                # On a CPU the other events are of Python, and of waiting.
                if line.name.startswith("Stream") if on_device else "hlo_op" in dict(event.stats):
                    seconds[event.name] += event.duration_ns * 1e-9
                    calls[event.name] += 1
    return seconds, calls


def costs(spec: dict[str, Any]) -> str:
    """What XLA says of the loss and its gradient, beside what the model must cost at least."""
    config = config_of(spec)
    model = palm.build(config, backend="jax", dtype="bfloat16", device=jax.devices()[0])
    tokens = jnp.asarray(next(windows(spec)), jnp.int32)

    def loss(model: Any, tokens: jax.Array) -> jax.Array:
        return next_token_loss(model(tokens), tokens)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(model, tokens).compile()
    found = compiled.cost_analysis()
    analysis = found[0] if isinstance(found, list) else found or {}
    memory = compiled.memory_analysis()
    return "\n".join(
        (
            "loss and gradient in bfloat16, by XLA's cost analysis (custom calls are not in it):",
            f"  flops {analysis.get('flops', 0):.4g}, of the model itself "
            f"{training_flops(config, spec['batch'], spec['length']):.4g}",
            f"  bytes accessed {analysis.get('bytes accessed', 0):.4g}",
            f"  temporary memory {getattr(memory, 'temp_size_in_bytes', 0) / 2**20:,.0f} MiB",
        )
    )


def table(seconds: Counter[str], calls: Counter[str]) -> str:
    """The operations that took longest, and how much of all time."""
    whole = sum(seconds.values()) or 1.0
    lines = [f"{'ms':>10} {'share':>6} {'calls':>6}  operation"]
    for name, taken in seconds.most_common(ROWS):
        short = re.sub(r"\s+", " ", name)[:110]
        lines.append(f"{taken * 1e3:10.3f} {taken / whole:6.1%} {calls[name]:6}  {short}")
    return "\n".join(lines)


def main() -> None:
    asked = parser(__doc__).parse_args()
    spec = profiled(TINY if asked.dry_run else Scale(), "jax")
    run = jax_side.prepare(spec)["run"]
    for _ in range(STEPS):
        run()
    plain = min(run()["seconds"] for _ in range(STEPS))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                run()
        seconds, calls = times(Path(folder))
    head = f"{asked.device}, {environment()}\n{spec}\n{plain * 1e3:.2f} ms a step without the profiler"
    text = f"{head}; {STEPS} steps with it:\n\n{table(seconds, calls)}\n"
    path = path_of(asked.out, "profile_jax", asked.device, "txt")
    path.write_text(text, encoding="utf-8")
    # The cost analysis compiles another program: what is known already is kept first.
    text += f"\n{costs(spec)}\n"
    path.write_text(text, encoding="utf-8")
    print(text[text.index(" ms a step") - 12 :][:4000])
    if not seconds:
        raise SystemExit("the profile must hold times of operations; got none.")


if __name__ == "__main__":
    main()
