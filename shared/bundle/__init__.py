"""The edge bundle: one signed file with ONNX graphs, a manifest and test vectors. No PyTorch."""
