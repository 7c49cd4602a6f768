"""What a user can cause. The message is one line: where, what was found, expected, what to do."""


class WspaceError(Exception):
    """Any refusal; the command line prints it as ``error: ...`` and exits with status 1."""


class CheckpointError(WspaceError):
    """A checkpoint that cannot be read, or whose files do not hold what they say."""


class MisalignedZooError(WspaceError):
    """Checkpoints that are not of one architecture: names, shapes or kinds of tensors differ."""


class WeightsError(WspaceError, ValueError):
    """Mixing weights that mean nothing for this zoo."""


class NonFiniteError(WspaceError):
    """NaN or Inf in an input, or a result beyond the range of the output's type."""


class OutputError(WspaceError):
    """An output that cannot be written where it was asked for."""


class BudgetError(WspaceError):
    """A memory budget too small for the work."""


class DeviceError(WspaceError):
    """A device that is not there."""
