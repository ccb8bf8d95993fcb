"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake in a command, a configuration, a data file or a checkpoint; its text is one sentence with the mend."""


class NoCheckpoint(UserError):
    """There is no whole checkpoint of the step asked for: none was saved, or it was removed, or it is damaged."""


class Preempted(Exception):
    """A run was asked to stop, or a process of it was killed; the same command resumes it from its last checkpoint."""


class Diverged(Exception):
    """A run whose loss or gradients stayed without a finite value; its text says where to look."""
