"""Pages and tables about scored models."""
