"""Preference data and label files of other projects, one small file per format.

Words are translated here: query -> prompt, completion -> response.
"""

from __future__ import annotations

from humanward.data.formats.reading import READERS, LabelFile, Reader
from humanward.data.formats.rows import Labeled, Row
from humanward.data.formats.writing import WRITERS, Writer, Written, write_labels

__all__ = ["READERS", "WRITERS", "LabelFile", "Labeled", "Reader", "Row", "Writer", "Written", "write_labels"]
