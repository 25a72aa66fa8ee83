"""What is timed: operators by order, each with its contenders and its truth."""
