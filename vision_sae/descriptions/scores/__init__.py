"""How well a text describes a unit: one definition in each file, with counter-examples.

No score uses the pictures that a description was made from, or other pictures of their sources.
"""
