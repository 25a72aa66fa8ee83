"""What the numbers depend on goes into the JSON beside them."""

import importlib.metadata

import torch


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["transformers"] = importlib.metadata.version("transformers")
