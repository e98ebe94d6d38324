"""Labels before people's eyes: a sheet to read, a blind quiz, and what its answers amount to."""
