"""Pictures and pages: reports of training runs, of data sets, of comparisons and of a model's architecture.

All are drawn with `style` (one look, units on every axis) and written through `document` (Markdown and one HTML file).
"""
