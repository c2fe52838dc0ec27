"""Side-by-side measurements: `make bench`. What is measured and how: docs/benchmark.md."""
