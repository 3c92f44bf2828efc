"""Errors that a user can act on: each names the cause and the remedy."""


class SuiteError(Exception):
    """Base of every error raised for a mistake that the caller can mend."""


class DataError(SuiteError, ValueError):
    """The data cannot be used: names the field, the row or column, and what to do."""


class ModelError(SuiteError, ValueError):
    """The Pyro program cannot be used: names the site, and what to do."""


class EngineError(SuiteError, ValueError):
    """The engine cannot do this with this model, or a setting is out of range."""
