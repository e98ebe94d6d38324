"""The gRPC front end: serves bundles with the models they were made from."""
