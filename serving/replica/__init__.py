"""The replica: the engine that holds everything one replica has, and what goes out of it."""
