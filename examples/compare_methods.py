"""Compare methods on your own rows from Python, as `ofa compare` does on the command line.

    python examples/compare_methods.py --methods zero-shot,icl,ln-tuning,ofa --out comparison

Finished cells are lines of `OUT/cells.jsonl`: the same command again runs only what is missing. Eight test
rows say little about which method is better; take some hundreds of your own.
"""

import argparse
from pathlib import Path

from rich.console import Console

import ofa
from ofa.compare.cells import Common, Pool, compare, plan
from ofa.compare.tables import sections

TASK = ofa.Task("weather", "Note: {text}\nWeather:", ["dry", "wet"])
TEXTS = {
    0: ["The dust rose behind the cart.", "We ate outside until dark.", "The river is low this week.",
        "The washing was done by noon.", "Not a cloud since Monday.", "The grass has turned yellow.",
        "The path was hard and cracked.", "Sun on the roof all day."],
    1: ["My boots still have not dried.", "Umbrellas filled the square.", "The gutters overflowed again.",
        "Puddles reached the front door.", "It poured all night.", "The match was called off in mud.",
        "Drops ran down the window.", "The tent leaked on us both."],
}  # fmt: skip
ROWS = [{"text": text, "label": label} for label, texts in TEXTS.items() for text in texts]


def main(arguments: list[str] | None = None) -> list[dict]:
    """Run what is missing, print the tables, return the finished cells."""
    parser = argparse.ArgumentParser(description="Compare methods on your own rows.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name, a folder or a hub id")
    parser.add_argument("--methods", default="zero-shot,icl,ln-tuning,ofa")
    parser.add_argument("--seeds", type=int, default=2, help="draws of the shots")
    parser.add_argument("--max-steps", type=int, help="cap on a method's training steps")
    parser.add_argument("--out", type=Path, default=Path("comparison"))
    options = parser.parse_args(arguments)
    model, tokenizer = ofa.models.load(options.model)
    to_draw_from = [row for i, row in enumerate(ROWS) if i % 2]
    pool = Pool(TASK, to_draw_from, ROWS[::2], shots=3)
    common = Common.of(ofa.models.source_of(model), model.dtype, options.max_steps)
    cells = plan([pool], options.methods.split(","), ["A"], range(options.seeds), common)
    rows = [row for row, _ in compare(model, tokenizer, cells, options.out)]
    for section in sections(rows):
        Console().print(section)
    return rows


if __name__ == "__main__":
    main()
