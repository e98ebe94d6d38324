"""What a dictionary is worth: metrics, and planted worlds in which the right answer is known."""
