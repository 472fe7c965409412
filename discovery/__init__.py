"""Service discovery: registries in, full sets of instances out."""
