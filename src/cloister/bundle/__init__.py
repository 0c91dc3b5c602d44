"""The bundle: the `.cloister` file, its sealing, and the keys of the devices that may open it."""
