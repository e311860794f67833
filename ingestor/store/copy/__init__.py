"""Copy all history of a database into another one, and prove that both are equal."""
