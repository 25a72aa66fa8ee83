"""A task in the words of lm-evaluation-harness (lm-eval), which loads our adapters through PEFT."""

import os

from ofa.data.task import FIELD, Task


def lm_eval_task(task: Task, path: str | os.PathLike) -> dict:
    """The lm-eval task that scores a file as `ofa` does: the same prompts, words and predictions.

    lm-eval sums the log-probabilities of all tokens of a word, which is what `Task(…, whole_words=True)`
    means, unless one word begins another; without it the two agree for words of one token.

    Args:
        task: template and label words.
        path: a JSONL file of {"text", "label"}, the label a class number or a label word.

    Returns:
        A configuration for `lm_eval.simple_evaluate(tasks=[…])`; as YAML, for `lm-eval run --tasks`. Its
        keys are those of lm-eval's task guide.
    """
    # the text is a Jinja variable, so a brace of the template itself must be none of Jinja's
    literals = (part.replace("{", "{{ '{' }}") for part in task.template.split(FIELD))
    return {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": os.fspath(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{ text }}".join(literals),
        "doc_to_choice": list(task.label_words),
        "doc_to_target": "label",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
