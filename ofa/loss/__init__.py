"""The objective and its terms."""
