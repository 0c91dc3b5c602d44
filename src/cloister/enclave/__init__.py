"""Running a bundle: the session, the wire protocol, and the local enclave."""
