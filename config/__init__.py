"""holdfast configuration: what the operator wrote, as one immutable object."""
