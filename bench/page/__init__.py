"""The page, measured in a real browser and in sessions without one: `python -m bench.page`."""
