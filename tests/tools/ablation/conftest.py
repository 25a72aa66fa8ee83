"""Cells of a search with a known answer."""

import pytest

REFERENCE = "ln-tuning:lr=0.003+epochs=30"
TASKS = "abcdef"


def made(method, task, seed, accuracy, **fields):
    return {
        "task": task, "method": method, "protocol": "A", "seed": seed, "shots": 5, "model": "m",
        "model_sha256": "0", "dtype": "float32", "data_sha256": task, "n_test": 400, "max_steps": None,
        "accuracy": accuracy, "calibration_error": 0.1, "log_loss": 0.5, "step_ratio": 28.0, "sharpness": 5.0,
        "seconds_fit": 36.0, "seconds_eval": 1.0, "n_trainable": 10, "n_trained_together": 1, **fields,
    }  # fmt: skip


@pytest.fixture
def cell():
    return made


@pytest.fixture
def run():
    """The cells of a setting, a number of points above 0.5 + 0.1 for each task before this one."""

    def cells(method, points, draws=(100, 101, 102), tasks=TASKS, **fields):
        keys = [(task, seed) for seed in draws for task in tasks]
        base = {(task, seed): 0.5 + TASKS.index(task) / 10 + (seed - 100) / 50 for task, seed in keys}
        return [made(method, *key, value + points / 100, **fields) for key, value in base.items()]

    return cells


@pytest.fixture
def search(run):
    """Forty settings: rates, λ_H and λ_J of both signs, few of them on all draws."""
    rows = run(REFERENCE, 0)
    for i, lr in enumerate(("0.001", "0.002", "0.005", "0.01", "0.02")):
        for j, epochs in enumerate((10, 30, 60)):
            draws = (100, 101, 102) if j == 1 else (100,)
            rows += run(f"ln-tuning:lr={lr}+epochs={epochs}", i - j, draws)
    for i, value in enumerate((-10, -1, -0.1, 0.1, 1, 10)):
        for lr in ("0.003", "0.01"):
            name = f"ofa:lambda_step=0+lambda_sharp={value}+lr={lr}+epochs=30"
            rows += run(name, 2.0 if value == 0.1 else i / 10, sharpness=5.0 - value**3, step_ratio=28.0 + i)
            name = f"ofa:lambda_step={value}+lambda_sharp=0+lr={lr}+epochs=30"
            rows += run(name, -i, (100,), TASKS[: 6 - i % 2])
    return rows
