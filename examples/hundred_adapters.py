"""A hundred adapters of one model: trained together, then answering in the same batches.

    python examples/hundred_adapters.py

Every customer sorts mail into two folders of their own, and has shown two letters of each. On a
CPU it takes some minutes.
"""

import argparse
from itertools import combinations, islice

import ofa

MAIL = {
    "bills": ("Your electricity invoice is due.", "The amount was debited.", "Second reminder to pay."),
    "cooking": ("Stir until the sauce thickens.", "A cake without flour.", "Ten soups for cold days."),
    "dogs": ("Your puppy is due for its shots.", "He chewed the leash.", "Walks in the park at six."),
    "exams": ("The results are on the board.", "Bring a pencil and your ID.", "You passed with honours."),
    "football": ("The match ended two to one.", "Our goalkeeper is injured.", "Tickets for the final."),
    "gardens": ("Plant the bulbs in autumn.", "The roses need pruning.", "Seeds are half price."),
    "health": ("Your blood test is normal.", "The doctor can see you.", "Take one tablet a day."),
    "jobs": ("We liked your application.", "The interview is on Monday.", "Your contract is attached."),
    "kitchen": ("Your oven will be delivered.", "The tap drips again.", "New cupboards, white or oak?"),
    "law": ("The court has set a date.", "Your solicitor called.", "Sign the statement twice."),
    "music": ("Rehearsal starts at seven.", "The new record is out.", "Your violin is repaired."),
    "parking": ("Your permit has expired.", "You were fined on Elm Street.", "A space is free in row C."),
    "rent": ("The lease ends in March.", "Your landlord wrote.", "The deposit was returned."),
    "travel": ("Your boarding pass for Friday.", "The hotel moved your room.", "The train is late."),
    "weather": ("Heavy rain is expected.", "A storm warning for the coast.", "Sunny all weekend."),
}


def main(arguments: list[str] | None = None) -> list[tuple[str, ...]]:
    """Print and return, for letters that were not shown: the customer, the text, its folder, the answer."""
    parser = argparse.ArgumentParser(description="A hundred adapters of one model.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name, a folder or a hub id")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)
    model, tokenizer = ofa.models.load(options.model)
    ln_tuning = ofa.OFAConfig(lambda_step=0, lambda_sharp=0, lr=1e-2, epochs=options.epochs)
    jobs, letters = [], []
    for number, folders in enumerate(islice(combinations(MAIL, 2), 100)):
        task = ofa.Task(f"customer {number}", "Mail: {text}\nFolder:", folders).told_apart(tokenizer)
        shots = [{"text": t, "label": i} for i, folder in enumerate(folders) for t in MAIL[folder][:2]]
        jobs.append(ofa.Job(task, shots, ln_tuning))
        letters += [(task.name, MAIL[folder][2], folder) for folder in folders]
    bank = ofa.AdapterBank(model, tokenizer)
    for job, result in zip(jobs, ofa.fit_many(model, tokenizer, jobs), strict=True):
        bank.add(job.task.name, result.gammas, job.task)
    names, texts, folders = zip(*letters, strict=True)
    rows = list(zip(names, texts, folders, map(str, bank.predict(texts, names)), strict=True))
    for row in [("adapter", "text", "folder", "answer"), *rows[:20]]:
        print("{:14}{:33}{:10}{}".format(*row))
    right = sum(folder == answer for _, _, folder, answer in rows)
    print(f"{right} of {len(rows)} right; the adapters take {bank.nbytes / 1e6:.0f} MB")
    return rows


if __name__ == "__main__":
    main()
