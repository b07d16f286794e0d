"""python -m medcls.pretrain."""
