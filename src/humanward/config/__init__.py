"""Settings: typed, frozen, explained; read from presets, YAML files and the command line, with every mistake named by file and line."""

from __future__ import annotations

from .base import Config
from .listing import Setting, dump_yaml, settings
from .presets import preset_names

__all__ = ["Config", "Setting", "dump_yaml", "preset_names", "settings"]
