"""The gRPC contract in Python: message classes and stubs of ``proto/vision_sae/v1``.

All files here except this one are written by ``python proto/generate.py``. Import the module of
the service or type you need: ``from vision_sae.v1 import catalog_service_pb2_grpc``.
"""
