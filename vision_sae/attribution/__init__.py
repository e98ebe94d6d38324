"""Which features made the model say this, and where in the picture: ledgers that add up."""
