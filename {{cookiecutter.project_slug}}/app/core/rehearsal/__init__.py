"""A migration, tried on a copy of the data under load, before production tries it.

Read run.py first: what is done, and in which order. The copy is in scratch.py, the readers and
writers are in load.py, what they waited for in watch.py, and what the release before says to all
that in previous.py and models.py.
"""
