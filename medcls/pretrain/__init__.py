"""The command pretrain: a store of volumes to an autoencoder."""
