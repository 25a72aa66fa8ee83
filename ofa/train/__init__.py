"""The training loop, what it minimises, and what it leaves behind."""
