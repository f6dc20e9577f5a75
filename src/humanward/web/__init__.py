"""The labelling page and the researcher's pages, over HTTP. Never imports torch."""

from __future__ import annotations

from humanward.web.app import create_app
from humanward.web.settings import WebSettings, read_secret

__all__ = ["WebSettings", "create_app", "read_secret"]
