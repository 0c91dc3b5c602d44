"""Published experiments done again, each beside the numbers of its paper."""
