"""What a search for settings found, as a page: `python -m tools.ablation`."""
