"""The version, written once: the build, the command line and the micro service descriptions all read it here."""

__version__ = "0.1.0"
