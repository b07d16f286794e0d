"""python -m medcls.explain."""
