"""Figures with intervals, and which pictures are independent evidence."""
