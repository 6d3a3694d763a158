"""The instrument: run a side (`probe`, `excerpt`), keep it (`bundle`), compare two (`diff`), say why they
differ (`diagnosis`, `foreign`), train both (`butterfly`), show it (`terminal`, `html`)."""

from typing import TYPE_CHECKING

from palm.lazy import on_first_use

if TYPE_CHECKING:
    from palm.compare.bundle import read_bundle, write_bundle
    from palm.compare.butterfly import Butterfly
    from palm.compare.comparison import Comparison, Finding
    from palm.compare.diagnosis import Diagnosis
    from palm.compare.diff import compare
    from palm.compare.excerpt import Excerpt, record_excerpt
    from palm.compare.foreign import ForeignComparison, Likeness
    from palm.compare.probe import Recording, record
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "Butterfly": "palm.compare.butterfly:Butterfly",
            "Comparison": "palm.compare.comparison:Comparison",
            "Diagnosis": "palm.compare.diagnosis:Diagnosis",
            "Excerpt": "palm.compare.excerpt:Excerpt",
            "Finding": "palm.compare.comparison:Finding",
            "ForeignComparison": "palm.compare.foreign:ForeignComparison",
            "Likeness": "palm.compare.foreign:Likeness",
            "Recording": "palm.compare.probe:Recording",
            "compare": "palm.compare.diff:compare",
            "read_bundle": "palm.compare.bundle:read_bundle",
            "record": "palm.compare.probe:record",
            "record_excerpt": "palm.compare.excerpt:record_excerpt",
            "write_bundle": "palm.compare.bundle:write_bundle",
        },
    )

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
