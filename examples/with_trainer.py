"""Train with transformers' `Trainer`, through `ofa.OFATrainer`.

    python examples/with_trainer.py --out adapters/trained

Two things differ from any other use of `Trainer`: the trainer's class, and `ofa.features` for its data.
"""

import argparse

from transformers import TrainingArguments

import ofa

TASK = ofa.Task("letters", "Message: {text}\nMood:", ["bad", "good"])
SHOTS = [
    {"text": "The printer has been broken for a week.", "label": 0},
    {"text": "The new reading room is a delight.", "label": 1},
    {"text": "Nobody answered any of my letters.", "label": 0},
    {"text": "Your staff found the book within minutes.", "label": 1},
    {"text": "The heating failed again.", "label": 0},
    {"text": "Thank you for the longer opening hours!", "label": 1},
]


def main(arguments: list[str] | None = None) -> ofa.OFATrainer:
    """Train and save the adapter; the trainer prints the loss and its terms at every step."""
    parser = argparse.ArgumentParser(description="Train with transformers' Trainer.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name, a folder or a hub id")
    parser.add_argument("--out", default="adapters/trained", help="the adapter's folder")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)
    model, tokenizer = ofa.models.load(options.model)
    data = ofa.features(tokenizer, TASK, SHOTS, max_tokens=512)
    settings = TrainingArguments(
        output_dir=options.out,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=3,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    )
    trainer = ofa.OFATrainer(model, settings, ofa.OFAConfig(), train_dataset=data)
    trainer.train()
    ofa.save_adapter(model, options.out)
    return trainer


if __name__ == "__main__":
    main()
