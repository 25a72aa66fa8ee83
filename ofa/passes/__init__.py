"""Forward passes that read the states and tangents of the prediction tokens."""
