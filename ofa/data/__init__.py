"""What a model is adapted to: tasks, rows of text and label, draws of them, and batches."""
