# The two commands a newcomer needs are `make demo` and `make test`; the rest is for developers.
# Everything is a thin door to `cargo xtask`.

.PHONY: help demo demo-down test check ci bench

help:
	@echo "make demo       the whole story on generated data; stays up until Ctrl-C"
	@echo "make demo-down  stop the demo and remove its data"
	@echo "make test       all tests, with real servers (installs what is missing)"
	@echo "make check      the quick loop: tidy, clippy, tests without servers"
	@echo "make ci         everything that must pass before a change lands"
	@echo "make bench      ingestion against a plain drain of the same tables"

demo:
	cargo xtask demo

demo-down:
	cargo xtask demo down

test:
	cargo xtask test

check:
	cargo xtask check

ci:
	cargo xtask ci

bench:
	cargo xtask bench ingest
