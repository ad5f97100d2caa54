"""What ends a backup or a restore with a sentence."""

import click


class BackupError(click.ClickException):
    """The message says what is wrong and what to do; the command ends with exit code 1."""
