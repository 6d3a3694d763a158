"""The instrument: run a side (`probe`), compare two (`diff`), train both (`butterfly`), show it (`html`)."""

from palm.compare.butterfly import Butterfly
from palm.compare.diff import Comparison, Finding, compare
from palm.compare.probe import Recording, record

__all__ = ["Butterfly", "Comparison", "Finding", "Recording", "compare", "record"]
