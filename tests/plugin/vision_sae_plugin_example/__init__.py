"""Kinds that a third party adds to vision_sae."""
