"""Exceptions: errors that the user can fix, preemption, and divergence."""


class UserError(Exception):
    """An error in a command, a configuration or a file; its text is one sentence with the fix."""


class NoCheckpoint(UserError):
    """No complete checkpoint of the requested step exists: not saved, removed, or damaged."""


class Preempted(Exception):
    """A run was asked to stop, or one of its processes was killed; the same command resumes it."""


class Diverged(Exception):
    """The loss or the gradients of a run stayed non-finite; the text says where to look."""
