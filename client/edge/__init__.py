"""The edge runtime: load, verify and score a bundle with numpy, onnxruntime and cryptography."""
