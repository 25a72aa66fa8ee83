"""What ofa knows of a language model: its family, its norms, and how they are replaced."""
