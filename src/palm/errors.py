"""Every error a user of palm can meet: one class per kind, the same in both wings.

Messages follow one template: `<field> must <invariant>; got <field>=<value>. <How to fix it.>`
"""


class PalmError(Exception):
    """Base of every error palm raises on purpose; `except palm.PalmError` catches them all."""


class ConfigError(PalmError, ValueError):
    """A configuration breaks an invariant, or a build option has no such value."""


class TokenError(PalmError, ValueError):
    """Tokens are empty, not integers, negative, or outside the vocabulary."""


class BackendError(PalmError, ValueError):
    """A backend or device that does not exist or is not available."""


class MissingFrameworkError(PalmError, ImportError):
    """The backend is known, but its framework is not installed."""


class WeightsError(PalmError, ValueError):
    """A weight is missing, unknown, duplicated, mis-shaped, of the wrong dtype, or not finite."""


class CheckpointError(PalmError, ValueError):
    """A checkpoint directory is incomplete, damaged, or of another format version."""


class BundleError(PalmError, ValueError):
    """A recording on disk is incomplete, damaged, of another format, or not what its config says."""


class UpstreamError(PalmError, ValueError):
    """A model from elsewhere does not have the architecture that `source` names."""


class DataError(PalmError, ValueError):
    """A corpus cannot be read or is too short."""


class ProbeError(PalmError, RuntimeError):
    """One side of a comparison stopped before it recorded anything."""


class RunError(PalmError, ValueError):
    """A run folder is missing, in use, damaged, or does not fit what is asked of it."""


class DivergedError(PalmError, ArithmeticError):
    """A loss or gradient is not finite. The weights are as before that step, but for a validation loss."""
