"""The servicers of the contract, one file per service."""
