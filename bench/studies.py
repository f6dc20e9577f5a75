"""Run the studies that ship with the package, one after the other, and put what they say into a page.

    python bench/studies.py RUNS_FOLDER [NAME …] [--write docs/results.md]

Studies that are done are not done again; unfinished ones go on. Without names all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from demo_quality import MARK

from humanward.studies import shipped_studies

HEAD = """# Shapes from the literature

Made by `python bench/studies.py RUNS_FOLDER --write docs/results.md`: the [studies](studies.md) that ship with the package, on the embedded
model, with the sentiment judge as the truth where nothing else is said. `humanward study NAME` runs one of them. A shape **holds** where
the 95 % interval of each difference, over seeds, leaves out 0; it is **open** where it holds 0.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(shipped_studies()))
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    for name in args.names:
        subprocess.run([sys.executable, "-m", "humanward", "study", name, str(args.folder / name)], check=True, stdout=subprocess.DEVNULL)
    files = {name: args.folder / name / "results.md" for name in shipped_studies()}
    page = HEAD + "\n".join(file.read_text() for file in files.values() if file.exists())
    if missing := [f"`{name}`" for name, file in files.items() if not file.exists()]:
        page += f"\nNot run here yet: {', '.join(missing)}.\n"
    print(page)
    if args.write is not None:
        first = args.write.read_text().partition(MARK)[0] if args.write.exists() else ""
        args.write.write_text(f"{first.rstrip()}\n\n{MARK}\n\n{page}")


if __name__ == "__main__":
    main()
