"""The errors that Cloister raises: one tree, each with a message, a hint and an exit code."""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CloisterError",
    "DataError",
    "EnclaveBusy",
    "EnclaveCrashed",
    "EnclaveError",
    "EnclaveOutOfMemory",
    "EnclaveUnavailable",
    "InputError",
    "IntegrityError",
    "NotForThisDevice",
    "OutputExists",
    "PlanError",
    "ProtocolError",
    "TargetError",
    "UnsupportedModel",
    "UserError",
]


class CloisterError(Exception):
    """Anything that Cloister refuses or that fails.

    Args:
        message: what was expected, what came, and where.
        hint: what to do about it, or None.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UserError(CloisterError):
    """Bad input or usage."""

    exit_code = 2


class TargetError(UserError):
    """A target (model, weights) cannot be loaded."""


class DataError(UserError):
    """A data set cannot be read."""


class PlanError(UserError):
    """A plan cannot be made: an unknown layer, or a budget that is too small."""


class InputError(UserError):
    """An input tensor has the wrong shape, dtype or values."""


class OutputExists(UserError):
    """An output file exists already and `--force` was not given."""


class UnsupportedModel(UserError):
    """A model has operators or a signature that cannot be handled.

    Args:
        message: a summary.
        problems: one (layer, operator, reason) for each place.
        hint: what to do about it.
    """

    def __init__(self, message: str, problems: list[tuple[str, str, str]], hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.problems = problems


class IntegrityError(CloisterError):
    """Something was changed, cut, swapped or is not for this device."""


class BundleError(IntegrityError):
    """A bundle is damaged, changed, or of another version."""


class NotForThisDevice(IntegrityError):
    """The enclave's device key cannot open the bundle."""


class EnclaveError(CloisterError):
    """The enclave failed."""


class EnclaveUnavailable(EnclaveError):
    """The enclave cannot be started."""


class EnclaveBusy(EnclaveError):
    """The enclave serves as many clients as it can."""


class EnclaveCrashed(EnclaveError):
    """The enclave process ended in the middle of a session."""


class EnclaveOutOfMemory(EnclaveError):
    """The program does not fit into the enclave's memory."""


class ProtocolError(EnclaveError):
    """The enclave answered with something that the wire protocol does not allow."""
