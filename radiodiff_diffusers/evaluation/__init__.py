"""Scoring radio maps: `metrics` (numbers for one map or many) and `benchmark` (whole test sets)."""
