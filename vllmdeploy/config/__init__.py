"""Text to settings: the only layer that knows pydantic or reads a settings file."""
