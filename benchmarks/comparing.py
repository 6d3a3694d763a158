"""What a comparison takes, in time and memory, from the start of Python on: `python benchmarks/comparing.py`.

Each row runs in a process of its own, which has compiled nothing before. Two cores are enough.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "comparing.json"

TWINS = """
import numpy as np, palm
config = palm.preset("tiny")
a, b = (palm.build(config, backend=backend) for backend in ("torch", "jax"))
b = palm.convert(a, backend="jax")
ids = np.random.default_rng(0).integers(0, config.num_tokens, (2, 32))
"""
# The sizes of GPT-2 small (124 million parameters), on 128 tokens.
GPT_2 = """
import sys; sys.path.insert(0, "tests")
import numpy as np, palm, gpt_port
gpt_port.VOCABULARY, gpt_port.LONGEST = 50257, 1024
gpt_port.WIDTH, gpt_port.HEADS, gpt_port.DEPTH = 768, 12, 12
a = gpt_port.gpt()
b = gpt_port.port("jax", gpt_port.weights(a), MISTAKES)
ids = np.random.default_rng(0).integers(0, 50257, (1, 128))
"""
UNKNOWN = """
import numpy as np, palm
model = palm.build(palm.preset("tiny"), backend="torch")
def a(ids):
    logits = palm.activations(model, ids)["logits"].astype(np.float64)
    return (logits + 0.05 * np.sin(5 * np.roll(logits, 1, -1))).astype(np.float32)
b, ids = model, np.random.default_rng(0).integers(0, model.config.num_tokens, 32)
"""
COMPARE = "\nfound = palm.compare(a, b, ids)\nprint(found.outcome)\n"


def readme() -> str:
    """The first example of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    return code[1]


PROGRAMS = {
    "twins, preset tiny": TWINS + COMPARE,
    "README's example": readme(),
    "GPT-2 small, 128 tokens, right": GPT_2.replace("MISTAKES", "()") + COMPARE,
    "GPT-2 small, 128 tokens, tanh for erf": GPT_2.replace("MISTAKES", '("tanh",)') + COMPARE,
    "logits of an unknown function": UNKNOWN + COMPARE,
}


def measured(program: str) -> dict[str, float | str]:
    """Seconds, GiB at most, and the first line that it printed."""
    before = time.perf_counter()
    code = program + "\nimport resource, sys\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, text=True, capture_output=True, check=True
    )
    seconds = time.perf_counter() - before
    told = done.stdout.splitlines()[0]
    return {
        "seconds": round(seconds, 1),
        "gib": round(int(done.stderr.split()[-1]) / 2**20, 2),
        "printed": told,
    }


def main(names: list[str]) -> None:
    """Run the rows whose names begin with one of `names`, or all."""
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for name, program in PROGRAMS.items():
        if not names or any(name.startswith(own) for own in names):
            found[name] = measured(program)
            print(f"{name:40} {found[name]}", flush=True)
            RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
