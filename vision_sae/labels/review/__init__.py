"""Review of labels by people: a contact sheet, a blind quiz, and estimates from its answers."""
