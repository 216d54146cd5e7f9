"""The fidelity suite: every type of the sources with its extremes, and what becomes of each value.

`cases` says what a case is, `postgres`, `postgres_texts` and `mongodb` hold them, `page` makes
docs/reference/types.md from them. `test_fidelity_*.py` load them, run the binary and read back.
"""
