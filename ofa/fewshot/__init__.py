"""Few-shot text classification: tasks, shots and data files."""
