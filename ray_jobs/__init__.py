"""Composition root: wires tasks, core and evaluation together and runs them on a Ray cluster. The only importer of Ray."""
