"""Code that scores share: the pictures of a unit, embedded texts, intervals and controls."""
