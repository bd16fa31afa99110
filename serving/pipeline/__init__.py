"""From a query to a list: stages, the catalogue they read, and the engine that runs them. No HTTP, no Ray."""
