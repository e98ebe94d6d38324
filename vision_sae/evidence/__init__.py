"""What is known of each unit: where it fires, in which pictures, and how strongly."""
