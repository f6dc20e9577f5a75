"""What a page says already, for commands that measure only a part of it anew."""

import re


def sections(page: str) -> dict[str, str]:
    """Title -> text of the sections of the second level, their headings among it."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## "): part.strip() for part in parts}
