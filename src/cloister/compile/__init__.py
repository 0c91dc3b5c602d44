"""From a PyTorch model to programs: capture, quantize, lower, cut into stages, encode."""
