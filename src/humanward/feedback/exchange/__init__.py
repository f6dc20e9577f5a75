"""Labels on their way out of a store and into one: streamed, exact where our own format is used, all or nothing on the way in."""

from __future__ import annotations

from humanward.feedback.exchange.exact import FORMAT, is_exact, read_exact, write_exact
from humanward.feedback.exchange.importing import Imported, import_file
from humanward.feedback.exchange.spool import Spool, foreign_records
from humanward.feedback.exchange.streaming import Part, each_label, label_count, left_out, most_responses, names

__all__ = [
    "FORMAT", "Imported", "Part", "Spool", "each_label", "foreign_records", "import_file", "is_exact", "label_count", "left_out",
    "most_responses", "names", "read_exact", "write_exact",
]  # fmt: skip
