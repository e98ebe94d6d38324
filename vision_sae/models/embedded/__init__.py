"""The demo's models: where their weights come from and how they are put together."""
