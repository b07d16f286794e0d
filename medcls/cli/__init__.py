"""The command line: settings composed and checked, exit codes, sweeps; the only room that knows Hydra."""
