"""palm: the PaLM language model natively in PyTorch and in JAX/Equinox, and a comparison of the two.

Importing palm imports neither framework: each wing is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING

import palm.interrupt  # noqa: F401 - first, for Ctrl-C comes when it likes

# isort: split

from palm.config import PaLMConfig
from palm.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    MissingFrameworkError,
    PalmError,
    ProbeError,
    RunError,
    TokenError,
    UpstreamError,
    WeightsError,
)
from palm.lazy import on_first_use
from palm.presets import PRESETS, preset
from palm.recipes import RECIPES, Recipe, recipe
from palm.training.cadence import Cadence

if TYPE_CHECKING:
    from palm.backends import available_backends, backend_of, config_of, dtype_of
    from palm.checkpoint.checkpoint import load, save
    from palm.checkpoint.export import export
    from palm.checkpoint.hub import from_hub
    from palm.checkpoint.programs import Programs, load_programs
    from palm.checkpoint.push import Pushed, push_to_hub
    from palm.generation.generate import generate
    from palm.generation.rows import Generation
    from palm.models import activations, build, convert, from_numpy, to_numpy, tokenizer_of, value_and_grad
    from palm.parity.compare import compare
    from palm.parity.finding import Finding
    from palm.parity.programs.result import Divergence, ProgramComparison
    from palm.parity.programs.sides import trace
    from palm.parity.programs.trace import Trace
    from palm.parity.recording.bundle import record_bundle as record
    from palm.parity.result import Comparison
    from palm.parity.run.serving import served
    from palm.spec.plan import Plan, plan
    from palm.training.evaluation import Evaluation, evaluate
    from palm.training.noise import Gap
    from palm.training.train import resume, train
    from palm.training.trained import Trained
    from palm.upstream.read import from_upstream
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "Comparison": "palm.parity.result:Comparison",
            "Divergence": "palm.parity.programs.result:Divergence",
            "Evaluation": "palm.training.evaluation:Evaluation",
            "Finding": "palm.parity.finding:Finding",
            "Gap": "palm.training.noise:Gap",
            "Generation": "palm.generation.rows:Generation",
            "Plan": "palm.spec.plan:Plan",
            "Programs": "palm.checkpoint.programs:Programs",
            "ProgramComparison": "palm.parity.programs.result:ProgramComparison",
            "Pushed": "palm.checkpoint.push:Pushed",
            "Trace": "palm.parity.programs.trace:Trace",
            "Trained": "palm.training.trained:Trained",
            "activations": "palm.models:activations",
            "available_backends": "palm.backends:available_backends",
            "backend_of": "palm.backends:backend_of",
            "build": "palm.models:build",
            "compare": "palm.parity.compare:compare",
            "config_of": "palm.backends:config_of",
            "convert": "palm.models:convert",
            "dtype_of": "palm.backends:dtype_of",
            "evaluate": "palm.training.evaluation:evaluate",
            "export": "palm.checkpoint.export:export",
            "from_hub": "palm.checkpoint.hub:from_hub",
            "from_numpy": "palm.models:from_numpy",
            "from_upstream": "palm.upstream.read:from_upstream",
            "generate": "palm.generation.generate:generate",
            "load": "palm.checkpoint.checkpoint:load",
            "load_programs": "palm.checkpoint.programs:load_programs",
            "plan": "palm.spec.plan:plan",
            "push_to_hub": "palm.checkpoint.push:push_to_hub",
            "record": "palm.parity.recording.bundle:record_bundle",
            "resume": "palm.training.train:resume",
            "save": "palm.checkpoint.checkpoint:save",
            "served": "palm.parity.run.serving:served",
            "to_numpy": "palm.models:to_numpy",
            "tokenizer_of": "palm.models:tokenizer_of",
            "trace": "palm.parity.programs.sides:trace",
            "train": "palm.training.train:train",
            "value_and_grad": "palm.models:value_and_grad",
        },
    )

__version__ = "0.2.0"

__all__ = [
    "PRESETS",
    "RECIPES",
    "BackendError",
    "BundleError",
    "Cadence",
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "DataError",
    "DivergedError",
    "Divergence",
    "Evaluation",
    "Finding",
    "Gap",
    "Generation",
    "MissingFrameworkError",
    "PaLMConfig",
    "PalmError",
    "Plan",
    "ProbeError",
    "ProgramComparison",
    "Programs",
    "Pushed",
    "Recipe",
    "RunError",
    "TokenError",
    "Trace",
    "Trained",
    "UpstreamError",
    "WeightsError",
    "activations",
    "available_backends",
    "backend_of",
    "build",
    "compare",
    "config_of",
    "convert",
    "dtype_of",
    "evaluate",
    "export",
    "from_hub",
    "from_numpy",
    "from_upstream",
    "generate",
    "load",
    "load_programs",
    "plan",
    "preset",
    "push_to_hub",
    "recipe",
    "record",
    "resume",
    "save",
    "served",
    "to_numpy",
    "tokenizer_of",
    "trace",
    "train",
    "value_and_grad",
]
