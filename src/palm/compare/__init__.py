"""The instrument: run a side (`probe`), compare two (`diff`), say why they differ
(`diagnosis`, `foreign`), train both (`butterfly`), show it (`html`)."""

from palm.compare.butterfly import Butterfly
from palm.compare.diagnosis import Diagnosis
from palm.compare.diff import Comparison, Finding, compare
from palm.compare.foreign import ForeignComparison, Likeness
from palm.compare.probe import Recording, record

__all__ = [
    "Butterfly",
    "Comparison",
    "Diagnosis",
    "Finding",
    "ForeignComparison",
    "Likeness",
    "Recording",
    "compare",
    "record",
]
