"""Find, explain and steer what the insides of a vision model mean.

Importing this package is light: torch is imported by the modules that need it.
"""

__version__ = "0.1.0"
