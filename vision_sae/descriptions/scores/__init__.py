"""How well a text says what a unit does: one definition a file, each with its own counter-examples.

Nothing here looks at the pictures that a description was made from, nor at others of their sources.
"""
