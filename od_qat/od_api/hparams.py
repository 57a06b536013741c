"""The record that slim's NASNet reads its hyperparameters from, in place of tf.contrib.training.HParams."""

from typing import Any


class HParams(object):
    """Holds named values as attributes."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def set_hparam(self, name: str, value: Any) -> None:
        """Changes an existing value.

        Raises:
          KeyError: for an unknown name.
        """
        if name not in self.__dict__:
            raise KeyError(name)
        setattr(self, name, value)

    def add_hparam(self, name: str, value: Any) -> None:
        """Adds a value."""
        setattr(self, name, value)

    def values(self) -> dict:
        """All values by name."""
        return dict(self.__dict__)
