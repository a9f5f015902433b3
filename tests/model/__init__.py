"""A model of how calls, busts and reapers meet at one store: see :mod:`tests.model.explore`."""
