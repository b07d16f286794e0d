"""python -m medcls.evaluate."""
