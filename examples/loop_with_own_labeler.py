"""The whole loop with a labeler of one's own: anything with a name and ``answer(question)``.

    python examples/loop_with_own_labeler.py runs/shouting --model MODEL_FOLDER --prompts TEXTS.txt

The preset `demo` suits the embedded model, `--preset own` a model of yours. The same command again goes on with an unfinished run.
The end prints the win rate and where the report and the policy lie.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from humanward.records import Question
from humanward.report import build_report
from humanward.rounds import Loop, LoopConfig


class Shouter:
    """Prefers the response with the most exclamation marks, and the shortest of those."""

    name = "shouter"

    def answer(self, question: Question) -> int:
        """The index of the best response. Ask a person, a program or another model here; a pause of any length does no harm."""
        texts = [response.text for response in question.responses]
        return max(range(len(texts)), key=lambda index: (texts[index].count("!"), -len(texts[index])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/own-labeler"), help="the run's folder")
    parser.add_argument("settings", nargs="*", help="NAME=VALUE, such as ppo.episodes=64")
    parser.add_argument("--model", default="asset:storyteller", help="a Hugging Face name or folder")
    parser.add_argument("--prompts", default="asset:prompts", help="a .txt, .jsonl or .parquet file, or a data set's name")
    parser.add_argument("--preset", default="demo", help="settings that ship with the package")
    args = parser.parse_intermixed_args()

    overrides = [f"model={json.dumps(args.model)}", f"prompts={json.dumps(args.prompts)}", "labels.overlap_share=0", *args.settings]
    loop = Loop(args.run, LoopConfig.load(overrides=overrides, preset=args.preset), labelers=[Shouter()])
    loop.run()

    results = json.loads((args.run / "evaluation/results.json").read_text(encoding="utf-8"))
    for row in results["win_rates"]:
        print(f"{row['policy']} against {row['against']}: {row['rate']:.0%} of {row['wins'] + row['losses'] + row['ties']}")
    print(f"report: {build_report(args.run)}")
    print(f"policy: {args.run / 'policy'}")


if __name__ == "__main__":
    main()
