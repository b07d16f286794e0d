"""The command compare: arms over the same folds of a store, with paired statistics."""
