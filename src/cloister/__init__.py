"""Cloister keeps the part of a neural network that remembers its training data inside an enclave."""
