"""Label files of other projects, one small file per format. Words are translated here: query -> prompt, completion -> response."""

from __future__ import annotations

from humanward.data.formats.reading import READERS, LabelFile
from humanward.data.formats.rows import Labeled, Row
from humanward.data.formats.writing import WRITERS, Written, write_labels

__all__ = ["READERS", "WRITERS", "LabelFile", "Labeled", "Row", "Written", "write_labels"]
