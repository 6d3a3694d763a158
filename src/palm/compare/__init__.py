"""The instrument: run a side (`probe`), compare two (`diff`), show it (`report`)."""

from palm.compare.diff import Comparison, Finding, compare
from palm.compare.probe import Recording, record

__all__ = ["Comparison", "Finding", "Recording", "compare", "record"]
