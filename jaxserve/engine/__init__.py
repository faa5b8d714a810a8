"""The engine: the loop that joins scheduler and runner, its process, its client, and the offline `LLM`."""
