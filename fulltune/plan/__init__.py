"""Planning: memory, time and cost of a run from its configuration alone, before anything starts."""
