"""What the pages need to know about where they run."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from humanward.errors import UserError
from humanward.storage.files import disk_faults

SECRET = "web-secret"
"""File of the run folder."""
_LETTERS = 64


@dataclass(frozen=True)
class WebSettings:
    """Settings of one server. Nothing here is read from the environment."""

    run: Path | None = None
    """Folder of the run that the labels are for: its settings, state and metrics are shown to researchers."""
    title: str = "Humanward"
    goal: int = 50
    """Labels that a labeler is asked for in one sitting."""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names, without port, under which the server answers; any other Host is refused."""
    behind_proxy: bool = False
    """A proxy of one's own speaks TLS to the world and adds the client's address to X-Forwarded-For."""
    tls: bool = False
    """This server speaks TLS itself."""
    lease_seconds: float = 600.0
    """How long a question stays with a labeler who does not answer."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of the labelling page that differ from the usual ones: action to key."""
    sign_ins_per_minute: int = 5
    """Failed sign-ins, per address."""
    labels_per_minute: int = 120
    """Events that a labeler may send."""
    secret: str = field(default_factory=lambda: secrets.token_hex(_LETTERS // 2), repr=False)
    """Names the cookie and blinds addresses in the audit log; ``read_secret`` keeps it across restarts."""

    @property
    def secure(self) -> bool:
        """Whether the browser sees TLS."""
        return self.tls or self.behind_proxy


def read_secret(folder: Path) -> str:
    """The secret of this installation: made on first use, readable by its owner alone.

    Raises:
        UserError: others may read it, it belongs to somebody else, or it is not what this program wrote.
        RunError: it cannot be written.
    """
    path = folder / SECRET
    with disk_faults(path, _LETTERS):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return _checked_secret(path)
        made = secrets.token_hex(_LETTERS // 2)
        try:
            os.write(descriptor, made.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return made


def _checked_secret(path: Path) -> str:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise UserError(f"{path}: not a file of this user; remove it, and a new secret is made")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"{path}: others may read it (mode {stat.S_IMODE(found.st_mode):o}); remove it, and a new secret is made")
    text = path.read_text(encoding="utf-8", errors="replace")
    if len(text) != _LETTERS or not set(text) <= set("0123456789abcdef"):
        raise UserError(f"{path}: damaged; remove it, and a new secret is made")
    return text
