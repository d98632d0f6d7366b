"""How a row is measured, registered and told."""
