"""The instrument: run a side (`probe`, `excerpt`), keep it (`bundle`), compare two (`diff`), say why they
differ (`diagnosis`, `foreign`), train both (`butterfly`), show it (`terminal`, `html`)."""

from palm.compare.bundle import read_bundle, write_bundle
from palm.compare.butterfly import Butterfly
from palm.compare.comparison import Comparison, Finding
from palm.compare.diagnosis import Diagnosis
from palm.compare.diff import compare
from palm.compare.excerpt import Excerpt, record_excerpt
from palm.compare.foreign import ForeignComparison, Likeness
from palm.compare.probe import Recording, record

__all__ = [
    "Butterfly",
    "Comparison",
    "Diagnosis",
    "Excerpt",
    "Finding",
    "ForeignComparison",
    "Likeness",
    "Recording",
    "compare",
    "read_bundle",
    "record",
    "record_excerpt",
    "write_bundle",
]
