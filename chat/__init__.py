"""The customer-service chat that holdfast ships with and fronts."""
