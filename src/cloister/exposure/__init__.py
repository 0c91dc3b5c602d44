"""How much each layer exposes of the members: the measure of Mo et al. (CCS 2019), with its controls."""
