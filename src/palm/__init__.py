"""palm: the PaLM language model natively in PyTorch and in JAX/Equinox, and the proof that the two agree.

Importing palm imports neither framework: each wing is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING

from palm.backends import (
    activations,
    available_backends,
    backend_of,
    build,
    config_of,
    convert,
    dtype_of,
    from_numpy,
    to_numpy,
    value_and_grad,
)
from palm.cadence import Cadence
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
from palm.recipe import RECIPES, Recipe, recipe

if TYPE_CHECKING:
    from palm.checkpoint import load, save
    from palm.compare import Comparison, Finding, compare
    from palm.compare.bundle import record_bundle as record
    from palm.generation import Generation, generate
    from palm.loop import Trained
    from palm.training import resume, train
    from palm.upstream import from_upstream
else:
    # `palm.compare` is the function. Python puts the package of that name there when it is first loaded, so
    # let that be now, at next to no cost, and take the name back.
    from palm import compare

    del compare
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "Comparison": "palm.compare:Comparison",
            "Finding": "palm.compare:Finding",
            "Generation": "palm.generation:Generation",
            "Trained": "palm.loop:Trained",
            "compare": "palm.compare:compare",
            "from_upstream": "palm.upstream:from_upstream",
            "generate": "palm.generation:generate",
            "load": "palm.checkpoint:load",
            "record": "palm.compare.bundle:record_bundle",
            "resume": "palm.training:resume",
            "save": "palm.checkpoint:save",
            "train": "palm.training:train",
        },
    )

__version__ = "0.1.0"

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
    "Finding",
    "Generation",
    "MissingFrameworkError",
    "PaLMConfig",
    "PalmError",
    "ProbeError",
    "Recipe",
    "RunError",
    "TokenError",
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
    "from_numpy",
    "from_upstream",
    "generate",
    "load",
    "preset",
    "recipe",
    "record",
    "resume",
    "save",
    "to_numpy",
    "train",
    "value_and_grad",
]
