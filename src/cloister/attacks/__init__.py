"""Membership inference: what somebody who sees only what is outside can tell of who was trained on."""
