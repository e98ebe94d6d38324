"""The gRPC server of bundles and the models that the bundles were made from."""
