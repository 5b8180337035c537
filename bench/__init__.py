"""The speed and memory figures, each measured in the same run as its peer where there is one: ``python -m bench [--json] [--quick]``.

One module per figure. Each has ``measure(...)``, which returns a flat table of numbers by key, and ``ABOUT``, which says what each key means. Nothing here
asserts a time: machines differ and are noisy, so minima, medians and ratios are printed and the reader judges.
"""
