"""The gRPC front end: validate, tokenize, pass on to the engine, stream back. Imports nothing of jax."""
