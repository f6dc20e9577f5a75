"""Run the studies that ship with the package, one after the other, and put what they say into a page.

    python bench/studies.py RUNS_FOLDER [NAME …] [--write docs/results.md]

Studies that are done are not done again; unfinished ones go on. Without names all of them. What the page says of studies that are not in
the folder stays.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import yaml
from demo_quality import MARK
from pages import sections

from humanward.studies.spec import shipped_studies, study_text

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
    first, _, before = (args.write.read_text() if args.write is not None and args.write.exists() else "").partition(MARK)
    told = sections(before.partition("\n\nNot run here yet:")[0])
    parts, missing = [], []
    for name in shipped_studies():
        title, file = yaml.safe_load(study_text(name))["title"], args.folder / name / "results.md"
        if file.exists() or title in told:
            parts.append(file.read_text().strip() if file.exists() else told[title])
        else:
            missing.append(f"`{name}`")
    if missing:
        parts.append(f"Not run here yet: {', '.join(missing)}.")
    page = HEAD + "\n\n".join(parts) + "\n"
    print(page)
    if args.write is not None:
        args.write.write_text(f"{first.rstrip()}\n\n{MARK}\n\n{page}")


if __name__ == "__main__":
    main()
